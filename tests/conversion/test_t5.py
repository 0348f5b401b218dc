"""T5 of transformers, with random weights, in our form and back."""

import pytest
import torch

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.conversion import save_transformers
from lengthwise.errors import InputError
from lengthwise.models.files import read_tensors, write_tensors
from lengthwise.positions.t5 import T5, bucket
from tests.conversion.theirs import change, made, pairs
from tests.stepping import in_pieces

transformers = pytest.importorskip("transformers", minversion="5.0")

SIZES = {
    "vocab_size": 40,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 20,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 40,
}
UNTIED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
KINDS = {
    "T5": ("T5ForConditionalGeneration", SIZES),
    "T5 1.1": ("T5ForConditionalGeneration", {**SIZES, **UNTIED}),
    "silu": ("T5ForConditionalGeneration", {**SIZES, "feed_forward_proj": "silu", "num_decoder_layers": None}),
    "gated silu": ("T5ForConditionalGeneration", {**SIZES, "feed_forward_proj": "gated-silu"}),
    "encoder": ("T5EncoderModel", SIZES),
    "encoder of 1.1": ("T5EncoderModel", {**SIZES, **UNTIED, "layer_norm_epsilon": 1e-3}),
}
LENGTHS = {"even": (24, 24), "ragged": (29, 13), "long": (301, 170)}


def theirs_of(kind):
    """A model of transformers, its weights moved away from where they start."""
    name, sizes = KINDS[kind]
    return made(name, "T5Config", 0.1, **sizes)


pair = pairs(theirs_of, KINDS)


def source(lengths):
    """Tokens padded on the right, transformers' mask, and the layout that says the same."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, 40, (n,), generator=generator) for n in lengths]
    layout = Layout.padded(lengths, "right")
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    return tokens, (~layout.padding).long(), layout


@torch.no_grad()
@pytest.mark.parametrize("lengths", LENGTHS)
def test_outputs_are_those_of_transformers(pair, lengths):
    theirs, ours, _ = pair
    tokens, mask, layout = source(LENGTHS[lengths])
    real = ~layout.padding
    if isinstance(ours, lw.Encoder):
        return same(ours(tokens, None, layout)[0][real], theirs(tokens, mask).last_hidden_state[real])
    target = torch.randint(4, 40, (2, 45), generator=torch.Generator().manual_seed(2))
    out = theirs(tokens, mask, decoder_input_ids=target)
    same(ours.encoder(tokens, None, layout)[0][real], out.encoder_last_hidden_state[real])
    return same(ours(target, source=tokens, source_layout=layout)[0], out.logits)


def same(got, expected):
    assert expected.std() > 0.1
    # 1e-5 of what is computed: float32 adds up in another order
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@torch.no_grad()
def test_decoding_goes_on_as_in_one_piece(pair):
    theirs, ours, _ = pair
    if isinstance(ours, lw.Encoder):
        pytest.skip("an encoder decodes nothing")
    tokens, mask, layout = source(LENGTHS["ragged"])
    target = torch.randint(4, 40, (2, 20), generator=torch.Generator().manual_seed(2))
    logits, _ = in_pieces(ours, target, range(7, 20), ours.encode(tokens, layout))
    same(logits, theirs(tokens, mask, decoder_input_ids=target).logits)


@torch.no_grad()
def test_transformers_reads_what_is_written(pair, tmp_path):
    theirs, ours, _ = pair
    save_transformers(ours, tmp_path)
    again = type(theirs).from_pretrained(tmp_path).eval()
    assert again.config.feed_forward_proj == theirs.config.feed_forward_proj
    kept = again.state_dict()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-6, atol=0)  # a norm is scaled there and back
    tokens, _, layout = source(LENGTHS["ragged"])
    own = lw.load(tmp_path).eval()
    if isinstance(ours, lw.Encoder):
        assert torch.equal(own(tokens, None, layout)[0], ours(tokens, None, layout)[0])
    else:
        target = tokens[:, :9]
        same(own(target, source=tokens)[0], ours(target, source=tokens)[0])
        same(again(tokens, decoder_input_ids=target).logits, theirs(tokens, decoder_input_ids=target).logits)


def test_all_layers_of_a_half_share_their_table(pair):
    _, ours, _ = pair
    tables = {id(module) for module in ours.modules() if isinstance(module, T5)}
    assert len(tables) == (1 if isinstance(ours, lw.Encoder) else 2)


def test_source_and_target_share_their_embedding_through_files(tmp_path):
    theirs = theirs_of("T5 1.1")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = lw.load(tmp_path / "theirs")
    assert ours.encoder.embedding.weight is ours.decoder.embedding.weight
    assert ours.decoder.head.weight is not ours.decoder.embedding.weight
    with torch.no_grad():
        ours.decoder.head.weight.add_(1)
    ours.save(tmp_path / "own")
    assert torch.equal(lw.load(tmp_path / "own").decoder.head.weight, ours.decoder.head.weight)
    save_transformers(ours, tmp_path / "again")
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(again.lm_head.weight, ours.decoder.head.weight)
    assert torch.equal(again.shared.weight, ours.decoder.embedding.weight)


@pytest.mark.parametrize("causal", [True, False])
def test_buckets_are_those_of_transformers(causal):
    attention = transformers.models.t5.modeling_t5.T5Attention
    distance = torch.arange(-300, 301)
    expected = attention._relative_position_bucket(distance, not causal, 32, 128)
    assert torch.equal(bucket(distance, 32, 128, causal=causal), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "gated-tanh"}, "gated-"),
        ({"num_heads": 0}, "num_heads"),
        ({"architectures": ["T5ForTokenClassification"]}, "architecture"),
    ],
)
def test_settings_without_a_counterpart_are_refused(changes, message, tmp_path):
    theirs_of("T5").save_pretrained(tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        lw.load(tmp_path)


def test_a_scaled_output_matrix_of_its_own_is_refused(tmp_path):
    theirs_of("T5").save_pretrained(tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", {**tensors, "lm_head.weight": tensors["shared.weight"] + 1})
    with pytest.raises(InputError, match="output matrix"):
        lw.load(tmp_path)


def test_weights_that_lack_the_embedding_or_do_not_fit_are_one_clear_error(tmp_path):
    theirs_of("T5").save_pretrained(tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    embedding = tensors.pop("shared.weight")
    first = next(name for name in tensors if ".wi" in name)
    for wrong in (
        {**tensors, "lm_head.weight": embedding},
        {**tensors, "shared.weight": embedding, first: tensors[first][:, :3]},
    ):
        write_tensors(tmp_path / "model.safetensors", wrong)
        with pytest.raises(InputError, match="belongs to another model"):
            lw.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "2*(attention(heads=2) + mlp(activation=relu, bias=false))"},
        {"decoder": "attention(heads=2, scale=1.0) + mlp(activation=relu, bias=false) + cross_attention(heads=2)"},
        {"position": "rope"},
        {"norm": "layernorm"},
    ],
)
def test_what_transformers_lacks_is_not_written(changes, tmp_path):
    layer = "attention(heads=2, scale=1.0) + {}mlp(activation=relu, bias=false)"
    sizes = {
        "vocab_size": 11,
        "dim": 8,
        "encoder": layer.format(""),
        "decoder": layer.format("cross_attention(heads=2, scale=1.0) + "),
        "position": "t5(heads=2)",
        "tie": True,
        "shared": True,
    }
    save_transformers(lw.EncoderDecoder(**sizes), tmp_path)
    with pytest.raises(InputError, match="transformers has no"):
        save_transformers(lw.EncoderDecoder(**{**sizes, **changes}), tmp_path)
