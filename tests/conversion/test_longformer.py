"""Longformer and LED of transformers, with random weights, in our form and back."""

import json

import pytest
import torch

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.conversion import save_transformers
from lengthwise.errors import InputError
from tests.conversion.theirs import change, made, pairs
from tests.stepping import token_by_token

PAD = 1
ENCODER = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "attention_window": 8,
    "max_position_embeddings": 322,
    "layer_norm_eps": 1e-5,
}
LED = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "attention_window": 8,
    "max_encoder_position_embeddings": 320,
    "max_decoder_position_embeddings": 32,
}
KINDS = {
    "Longformer": ("LongformerModel", ENCODER),
    "Longformer, a window for each layer": ("LongformerModel", {**ENCODER, "attention_window": [4, 12]}),
    "Longformer, one type, another padding": ("LongformerModel", {**ENCODER, "type_vocab_size": 1, "pad_token_id": 3}),
    "Longformer with a head": ("LongformerForMaskedLM", ENCODER),
    "LED without a head": ("LEDModel", LED),
    "LED": ("LEDForConditionalGeneration", LED),
    "LED, other sizes": (
        "LEDForConditionalGeneration",
        {**LED, "attention_window": [12, 4, 6], "encoder_layers": 3, "decoder_layers": 1, "decoder_ffn_dim": 70},
    ),
}
LENGTHS = {"even": (24, 24), "ragged": (29, 13), "short": (5, 2), "long": (301, 170)}
MARKS = {
    "none": ((), ()),
    "one each": ((0,), (0,)),
    "different": ((0, 3, 12, 200), (1,)),
    "in one row": ((), (0, 1, 4)),
}


def theirs_of(kind):
    """A model of transformers, its weights moved away from where they start."""
    name, sizes = KINDS[kind]
    return made(name, "LEDConfig" if name.startswith("LED") else "LongformerConfig", 0.3, **sizes)


pair = pairs(theirs_of, KINDS)


def source(lengths, marked, pad=PAD):
    """Tokens padded on the right, transformers' masks, and the layout that says the same."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, 40, (n,), generator=generator) for n in lengths]
    layout = Layout.padded(lengths, "right")
    marks = torch.zeros_like(layout.documents, dtype=torch.bool)
    for row, places in enumerate(marked):
        marks[row, [place for place in places if place < lengths[row]]] = True
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    masks = {"attention_mask": (~layout.padding).long(), "global_attention_mask": marks.long()}
    return tokens, masks, layout.mark(marks)


@torch.no_grad()
@pytest.mark.parametrize("marked", MARKS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_outputs_are_those_of_transformers(pair, lengths, marked):
    theirs, ours, _ = pair
    tokens, masks, layout = source(LENGTHS[lengths], MARKS[marked], theirs.config.pad_token_id)
    if isinstance(ours, lw.EncoderDecoder):
        target = torch.randint(4, 40, (2, 7), generator=torch.Generator().manual_seed(2))
        out = theirs(tokens, **masks, decoder_input_ids=target)
        state = ours.encode(tokens, layout)
        got = ours(target, state)[0] if "logits" in out else ours.decoder.hidden(target, state)[0]
        real = torch.ones_like(target, dtype=torch.bool)
        same(ours.encoder(tokens, None, layout)[0], out.encoder_last_hidden_state, ~layout.padding)
    else:
        out = theirs(tokens, **masks)
        got, real = ours(tokens, None, layout)[0], ~layout.padding
    same(got, out.logits if "logits" in out else out.last_hidden_state, real)


def same(got, expected, real):
    assert expected[real].std() > 0.1
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-4)


@torch.no_grad()
def test_decoding_goes_on_as_in_one_piece(pair):
    theirs, ours, _ = pair
    if not isinstance(ours, lw.EncoderDecoder) or type(theirs).__name__ == "LEDModel":
        pytest.skip("decodes nothing")
    tokens, masks, layout = source((29, 13), MARKS["different"])
    target = torch.randint(4, 40, (2, 7), generator=torch.Generator().manual_seed(2))
    logits, _ = token_by_token(ours, target, ours.encode(tokens, layout))
    expected = theirs(tokens, **masks, decoder_input_ids=target).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_types_and_padding_on_the_left(pair):
    theirs, ours, _ = pair
    if isinstance(ours, lw.EncoderDecoder):
        pytest.skip("has no types, and counts padding on the left as tokens")
    tokens, masks, _ = source((17, 11), MARKS["different"], theirs.config.pad_token_id)
    layout = Layout.padded([17, 11], "left")
    tokens, masks = tokens.clone(), {name: mask.clone() for name, mask in masks.items()}
    for x in (tokens, *masks.values()):
        x[1] = x[1].roll(6)
    marked = layout.mark(masks["global_attention_mask"].bool())
    types = torch.arange(17).expand(2, 17) % theirs.config.type_vocab_size
    out = theirs(tokens, **masks, token_type_ids=types)
    got, _ = ours(tokens, None, marked, types)
    same(got, out.logits if "logits" in out else out.last_hidden_state, ~layout.padding)


@torch.no_grad()
def test_transformers_reads_what_is_written(pair, tmp_path):
    theirs, ours, folder = pair
    save_transformers(ours, tmp_path)
    again = type(theirs).from_pretrained(tmp_path).eval()
    unread = {"pooler.dense.weight", "pooler.dense.bias"}
    for name, tensor in theirs.state_dict().items():
        found = again.state_dict()[name]
        if name.endswith("embeddings.position_embeddings.weight"):
            # Rows up to the padding token's number are of no position.
            tensor, found = tensor[theirs.config.pad_token_id + 1 :], found[PAD + 1 :]
        assert name in unread or torch.equal(found, tensor), name
    given, written = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    if theirs.config.pad_token_id == PAD and type(theirs).__name__ != "LEDModel":
        assert {name: given[name] for name in written} == written
    reread = lw.load(tmp_path)
    assert type(reread) is type(ours)
    for a, b in zip(reread.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("Longformer", {"layer_norm_eps": 1e-12}, "layer_norm_eps = 1e-12; lengthwise has 1e-05"),
        ("Longformer", {"layer_norm_eps": None}, "layer_norm_eps = 1e-12"),  # transformers' default
        ("Longformer", {"hidden_act": "relu"}, "hidden_act = relu"),
        ("Longformer", {"attention_window": 7}, "attention_window must be even"),
        ("Longformer", {"attention_window": [4]}, "for each of 2 layers"),
        ("Longformer", {"architectures": ["LongformerForSequenceClassification"]}, "architecture of transformers"),
        ("Longformer", {"num_hidden_layers": 1, "attention_window": 8}, "belongs to another model"),
        ("Longformer", {"pad_token_id": "1"}, "pad_token_id must be a whole number"),
        ("LED", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ("LED", {"decoder_ffn_dim": 21}, "belongs to another model"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(tmp_path, kind, values, message):
    theirs_of(kind).save_pretrained(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(InputError, match=message):
        lw.load(tmp_path)


def test_a_bias_of_the_logits_is_not_dropped_in_silence(tmp_path):
    theirs = theirs_of("LED")
    theirs.final_logits_bias[0, 3] = 1.0
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="final_logits_bias"):
        lw.load(tmp_path)


LAYERS = "layernorm + post_norm(2*(longformer(window=4, heads=2) + mlp(hidden=24)))"


@pytest.mark.parametrize(
    "changed",
    [
        {"layers": LAYERS.replace("layernorm + ", "")},
        {"layers": LAYERS.replace("post_norm", "")},
        {"layers": LAYERS.replace("hidden=24", "hidden=24, activation=relu")},
        {"layers": LAYERS.replace("mlp(hidden=24)", "swiglu")},
        {"norm": "rmsnorm"},
        {"position": "rope"},
        {"types": 0},
    ],
)
def test_a_model_without_a_counterpart_is_a_clear_error(tmp_path, changed):
    same = {"vocab_size": 11, "dim": 16, "layers": LAYERS, "position": "learned(length=9)", "norm": "layernorm"}
    with pytest.raises(InputError, match="transformers has no MaskedLanguageModel made of"):
        save_transformers(lw.MaskedLanguageModel(**{"types": 1, **same, **changed}), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    save_transformers(lw.MaskedLanguageModel(**same, types=1), tmp_path / "yes")
