"""Models of transformers, with random weights, in our form and back."""

import json

import pytest
import torch

import lengthwise as lw
from lengthwise.conversion import save_transformers
from lengthwise.errors import InputError
from tests.conversion.theirs import change, made, pairs
from tests.stepping import token_by_token

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
KINDS = {
    "mamba": ("Mamba", SMALL),
    "mamba, untied, other sizes": (
        "Mamba",
        {**SMALL, "tie_word_embeddings": False, "expand": 3, "conv_kernel": 3, "time_step_rank": 5},
    ),
    "falcon_mamba": ("FalconMamba", SMALL),
    "mamba2": ("Mamba2", {**SMALL, "num_heads": 8, "head_dim": 8, "n_groups": 2}),
    "mamba2, one group, other sizes": (
        "Mamba2",
        {**SMALL, "expand": 3, "num_heads": 6, "head_dim": 16, "n_groups": 1, "conv_kernel": 3},
    ),
    "rwkv": ("Rwkv", {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "rescale_every": 0}),
    "rwkv, other sizes": (
        "Rwkv",
        {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 7, "intermediate_size": 30, "rescale_every": 0},
    ),
}


def theirs_of(kind):
    """A model of transformers, its weights moved away from where they start."""
    name, sizes = KINDS[kind]
    return made(f"{name}ForCausalLM", f"{name}Config", 0.02, **sizes)


pair = pairs(theirs_of, KINDS)


@torch.no_grad()
def test_logits_are_those_of_transformers_whole_and_token_by_token(pair):
    theirs, ours, _ = pair
    tokens = torch.randint(40, (2, 21), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(tokens)[0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(token_by_token(ours, tokens)[0], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_transformers_reads_what_is_written(pair, tmp_path):
    theirs, ours, folder = pair
    save_transformers(ours, tmp_path)
    again = type(theirs).from_pretrained(tmp_path).eval()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    given, written = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    assert {name: given[name] for name in written} == written
    tokens = torch.randint(40, (1, 9))
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)


def test_a_model_in_several_files_and_half_precision(tmp_path):
    theirs = theirs_of("mamba").bfloat16()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    weight = lw.load(tmp_path).stack.layers[0].part.in_proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, theirs.backbone.layers[0].mixer.in_proj.weight.float())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mambo"}, "did you mean"),
        ({"model_type": "bert"}, "known: "),
        ({"hidden_size": 64}, "belongs to another model"),
        ({"hidden_size": None}, "lacks it"),
        ({"hidden_size": "32"}, "whole number"),
        ({"num_hidden_layers": 2}, "belongs to another model"),
        ({"num_hidden_layers": 4}, "belongs to another model"),
        ({"use_bias": True}, "use_bias = True"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(tmp_path, values, message):
    theirs_of("mamba").save_pretrained(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(InputError, match=message):
        lw.load(tmp_path)


def test_wrong_weights_are_one_clear_error(tmp_path):
    theirs_of("mamba").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="cut short"):
        lw.load(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="could run code"):
        lw.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="which weights are in which file"):
        lw.load(tmp_path)


def test_a_model_without_a_counterpart_is_a_clear_error(tmp_path):
    for layers in ("2*mamba + attention", "2*(mamba + mlp)", "mamba(state_dim=4) + mamba", "min_gru"):
        with pytest.raises(InputError, match="transformers has no LanguageModel made of"):
            save_transformers(lw.LanguageModel(11, 16, layers, position="none"), tmp_path)
    with pytest.raises(InputError, match="transformers has no Encoder made of attention"):
        save_transformers(lw.Encoder(11, 16, "attention"), tmp_path)
    with pytest.raises(InputError, match="transformers has no Linear"):
        save_transformers(torch.nn.Linear(2, 2), tmp_path)
    assert not list(tmp_path.iterdir())
