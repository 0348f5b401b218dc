"""Llama and what differs from it in little, with random weights, in our form and back."""

import json
import math

import pytest
import torch

import lengthwise as lw
from lengthwise.conversion import save_transformers
from lengthwise.errors import InputError
from lengthwise.models.files import read_tensors, write_tensors
from lengthwise.models.tokenizer import Tokenizer
from tests.conversion.theirs import change, made, pairs
from tests.stepping import token_by_token

transformers = pytest.importorskip("transformers", minversion="5.0")

SMALL = {
    "vocab_size": 60,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
BY_PARTS = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS = {
    "llama": ("Llama", {}),
    "llama, all that can be set": (
        "Llama",
        {
            "rms_norm_eps": 1e-5,
            "head_dim": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama, scaled by parts": ("Llama", {"rope_parameters": BY_PARTS}),
    "llama, scaled": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
}


def theirs_of(kind):
    """A model of transformers, its weights moved away from where they start."""
    name, sizes = KINDS[kind]
    return made(f"{name}ForCausalLM", f"{name}Config", 0.05, **SMALL, **sizes)


pair = pairs(theirs_of, KINDS)


@torch.no_grad()
def test_logits_are_those_of_transformers_whole_and_token_by_token(pair):
    theirs, ours, _ = pair
    tokens = torch.randint(60, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(tokens)[0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(token_by_token(ours, tokens)[0], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_transformers_reads_what_is_written(pair, tmp_path):
    theirs, ours, _ = pair
    save_transformers(ours, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(60, (2, 20))
    # Where it is written as a Llama, the same numbers are added in the same order.
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)
    assert lw.load(tmp_path).config == ours.config


def test_settings_of_transformers_before_5_are_read(tmp_path):
    theirs_of("llama, scaled by parts").save_pretrained(tmp_path)
    now = lw.load(tmp_path).config
    scaling = {name: value for name, value in BY_PARTS.items() if name != "rope_theta"}
    change(tmp_path, rope_parameters=None, rope_theta=5e5, rope_scaling=scaling)
    assert lw.load(tmp_path).config == now
    change(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert lw.load(tmp_path).config["position"] == "rope(base=500000.0, scale=2.0)"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "known: default, linear, llama3"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' lack factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "lack original_max_position_embeddings"),
        ({"rope_parameters": {"rope_theta": "much"}}, "rope_theta must be a number"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "a part of a head"),
        ({"rope_parameters": [1]}, "no mapping"),
        ({"num_key_value_heads": 4}, "must divide"),
        ({"intermediate_size": 64}, "belongs to another model"),
        ({"num_hidden_layers": 4}, "belongs to another model"),
        ({"rms_norm_eps": "small"}, "must be a number"),
        ({"rms_norm_eps": -1.0}, "above 0"),
        ({"rms_norm_eps": math.nan}, "must be a number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, and .* only"),
        ({"vocab_size": 2**45}, "belongs to another model"),
        ({"hidden_size": 2**40, "head_dim": None}, "impossible sizes"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(tmp_path, values, message):
    theirs_of("llama").save_pretrained(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(InputError, match=message):
        lw.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("self_attn.q_proj", lambda t: t.to(torch.int8), "as torch.int8, which can't be made torch.float32"),
        ("self_attn.q_proj", lambda t: t > 0, "as torch.bool, which can't be made"),
        ("mlp.gate_proj", lambda t: t[:, :3], "belongs to another model"),
    ],
)
def test_weights_of_another_kind_or_size_are_one_clear_error(tmp_path, name, make, message):
    theirs_of("llama").save_pretrained(tmp_path)
    tensors, metadata = read_tensors(tmp_path / "model.safetensors")
    whole = f"model.layers.0.{name}.weight"
    write_tensors(tmp_path / "model.safetensors", {**tensors, whole: make(tensors[whole])}, metadata)
    with pytest.raises(InputError, match=message):
        lw.load(tmp_path)


def test_a_model_without_a_counterpart_is_a_clear_error(tmp_path):
    for layers, more in [
        ("attention + swiglu", {"position": "alibi"}),
        ("attention + swiglu", {"position": "rope(layout=interleaved)"}),
        ("attention + swiglu", {"position": "rope(fraction=0.5)"}),
        ("attention + swiglu", {"norm": "layernorm"}),
        ("attention + mlp", {}),
        ("attention(window=3) + swiglu + attention + swiglu", {}),
        ("swiglu + attention", {}),
    ]:
        with pytest.raises(InputError, match="transformers has no LanguageModel made of"):
            save_transformers(lw.LanguageModel(11, 16, layers, **more), tmp_path)


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer with a token that begins a text and one that ends it."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the quick brown fox the lazy dog"] * 20, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(made.to_str(), settings)


def test_a_tokenizer_stays_with_its_model_in_both_forms(tokenizer, tmp_path):
    model = lw.LanguageModel(320, 16, "attention(heads=2) + swiglu")
    assert model.tokenizer is None
    model.tokenizer = tokenizer
    model.save(tmp_path / "ours")
    save_transformers(lw.load(tmp_path / "ours"), tmp_path / "theirs")
    again = lw.load(tmp_path / "theirs")
    assert again.tokenizer.content == tokenizer.content
    assert again.tokenizer.settings == tokenizer.settings
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert theirs("the fox é").input_ids == again.tokenizer.first + again.tokenizer.encode("the fox é")
    assert theirs.eos_token == "</s>"


def test_a_text_prompt_is_read_by_the_models_tokenizer_and_begins_as_it_says(tokenizer):
    model = lw.LanguageModel(320, 16, "attention(heads=2) + swiglu").eval()
    model.tokenizer = tokenizer
    tokens = [0, *tokenizer.encode("the fox")]
    expected = list(lw.generate(model, tokens, max_tokens=5, temperature=0))
    for prompt in ("the fox", b"the fox"):
        assert list(lw.generate(model, prompt, max_tokens=5, temperature=0)) == expected


def test_a_tokenizer_that_does_not_fit_is_one_clear_error(tokenizer, tmp_path):
    model = lw.LanguageModel(100, 16, "attention(heads=2) + swiglu")
    model.tokenizer = tokenizer
    with pytest.raises(InputError, match="the model one of 100"):
        lw.generate(model, "the fox")
    model.save(tmp_path)
    for content, message in [("{}", "not a Hugging Face tokenizer.json"), ("no", "not a Hugging Face")]:
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(InputError, match=message):
            lw.generate(lw.load(tmp_path), "the fox")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match="must hold settings"):
        lw.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="it is no text"):
        lw.load(tmp_path)
