"""GGUF files of models with random weights, and what is wrong with broken ones."""

import math
import struct

import pytest
import torch

import lengthwise as lw
from lengthwise.errors import InputError

gguf = pytest.importorskip("gguf")

from tests.conversion import gguf_files as files  # noqa: E402 - needs the package gguf
from tests.conversion.theirs import made  # noqa: E402

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PARTS = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def theirs_of(name="Llama", **more):
    return made(f"{name}ForCausalLM", f"{name}Config", 0.05, **SIZES, **more)


@pytest.fixture
def parts():
    """The settings and tensors of a good file."""
    return files.of_transformers(theirs_of())


@torch.no_grad()
def agree(ours, theirs, tolerance=1e-5):
    tokens = torch.randint(64, (2, 30), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.eval()(tokens)[0], theirs(tokens).logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Llama", {"rms_norm_eps": 1e-5}),
        ("Llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("Qwen2", {}),
    ],
)
def test_the_model_in_a_file_is_the_one_it_was_made_from(tmp_path, name, more):
    theirs, architecture = theirs_of(name, **more), name.lower()
    path = files.write(tmp_path / "m.gguf", *files.of_transformers(theirs, architecture), architecture)
    ours = lw.load(path)
    assert ours.tokenizer is None
    assert ours.config["tie"] == theirs.config.tie_word_embeddings
    agree(ours, theirs)


@pytest.mark.parametrize("form", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_every_form_of_weights_is_read_as_the_numbers_it_holds(tmp_path, form):
    theirs, kind = theirs_of(), gguf.GGMLQuantizationType[form]
    settings, tensors = files.of_transformers(theirs)
    ours = lw.load(files.write(tmp_path / "m.gguf", settings, tensors, kind=kind))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 2:
                packed = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    agree(ours, theirs)


@pytest.mark.parametrize("key", ["rope.scaling", "rope.scale_linear"])
def test_linear_scaling_is_read_by_its_new_name_and_its_old_one(tmp_path, key):
    theirs = theirs_of(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})
    settings, tensors = files.of_transformers(theirs)
    new = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    settings |= new if key == "rope.scaling" else {"llama.rope.scale_linear": 4.0}
    agree(lw.load(files.write(tmp_path / "m.gguf", settings, tensors)), theirs)


def test_scaling_by_parts_is_found_in_what_frequencies_are_divided_by(tmp_path):
    theirs = theirs_of(rope_parameters=PARTS)
    plain = 5e5 ** (-torch.arange(0, 16, 2) / 16)
    settings, tensors = files.of_transformers(theirs)
    tensors["rope_freqs.weight"] = plain / theirs.model.rotary_emb.inv_freq
    ours = lw.load(files.write(tmp_path / "m.gguf", settings, tensors))
    assert ours.config["position"] == "rope(base=500000.0, scale=8.0, trained=256, slow=1.0, fast=4.0)"
    agree(ours, theirs)
    tensors["rope_freqs.weight"] = torch.linspace(1, 3, 8)
    with pytest.raises(InputError, match=r"isn't Llama 3\.1's"):
        lw.load(files.write(tmp_path / "other.gguf", settings, tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama.block_count": None}, "lacks the setting llama.block_count"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "lacks the setting .*epsilon"),
        ({"llama.embedding_length": "wide"}, "embedding_length = wide"),
        ({"llama.block_count": 3}, r"lacks the tensor blk\.2\.attn_norm\.weight \(9 are missing\)"),
        ({"llama.block_count": 1}, "belongs to another model"),
        ({"llama.feed_forward_length": 64}, "belongs to another model"),
        ({"llama.expert_count": 8}, "mixture of 8 experts"),
        ({"llama.rope.dimension_count": 8}, "a part of a head"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}, "'yarn'.* lengthwise knows linear"),
        ({"tokenizer.ggml.model": "bert"}, "unknown tokenizer of GGUF 'bert'; known: gpt2, llama"),
        ({"general.alignment": 0}, "general.alignment = 0"),
        ({"llama.block_count": 10**9}, r"lacks the tensor blk\.2"),
        ({"llama.feed_forward_length": 2**31}, r"should be \[4294967296, 64\]"),
        ({"llama.embedding_length": 2**31}, "64 rows for 4 heads of 536870912"),
        ({"llama.attention.head_count": 0}, "64 rows for 0 heads"),
        ({"llama.rope.freq_base": math.nan}, "rope_theta must be a number"),
        ({"llama.attention.layer_norm_rms_epsilon": math.inf}, "rms_norm_eps must be a number"),
    ],
)
def test_wrong_settings_are_one_clear_error(tmp_path, parts, change, message):
    settings = {name: value for name, value in {**parts[0], **change}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        lw.load(files.write(tmp_path / "m.gguf", settings, parts[1]))


def test_an_unknown_architecture_names_those_known(tmp_path, parts):
    with pytest.raises(InputError, match="unknown architecture of GGUF 'falcon'; known: llama, qwen2"):
        lw.load(files.write(tmp_path / "m.gguf", *parts, "falcon"))


def test_missing_and_strange_tensors_are_one_clear_error(tmp_path, parts):
    settings, tensors = parts
    for name in ("token_embd.weight", "blk.1.ffn_up.weight", "output_norm.weight"):
        kept = {key: tensor for key, tensor in tensors.items() if key != name}
        with pytest.raises(InputError, match=f"lacks the tensor {name}"):
            lw.load(files.write(tmp_path / "m.gguf", settings, kept))
    with pytest.raises(InputError, match=r"blk\.0\.attn_q_norm\.weight"):
        lw.load(files.write(tmp_path / "m.gguf", settings, {**tensors, "blk.0.attn_q_norm.weight": torch.ones(16)}))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("plain", (3,), "has 'plain', which the model lacks"),
        ("blk.0.attn_q.weight", (60, 64), "60 rows for 4 heads of 16"),
        ("blk.0.attn_k.bias", (31,), "31 rows for 2 heads of 16"),
        ("token_embd.weight", (64,), r"should be \[64, 64\]"),
        ("blk.0.ffn_gate.weight", (96, 32), "belongs to another model"),
    ],
)
def test_tensors_of_other_sizes_are_one_clear_error(tmp_path, parts, name, shape, message):
    with pytest.raises(InputError, match=message):
        lw.load(files.write(tmp_path / "m.gguf", parts[0], {**parts[1], name: torch.ones(shape)}))


def test_sizes_without_the_bytes_for_them_and_names_that_come_twice_are_one_clear_error(tmp_path, parts):
    path = files.write(tmp_path / "m.gguf", *parts)
    content = path.read_bytes()
    size = b"token_embd.weight" + struct.pack("<IQ", 2, 64)
    for old, new, message in [
        (size + struct.pack("<Q", 64), size + struct.pack("<Q", 2**40), "is cut short: it ends within token_embd"),
        (b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight", "two tensors of one name"),
    ]:
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(InputError, match=message):
            lw.load(path)
    name = struct.pack("<Q", 1) + b"a" + struct.pack("<IB", 0, 1)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * name)
    with pytest.raises(InputError, match="the setting a twice"):
        lw.load(path)


def test_a_form_of_weights_that_is_not_known_is_one_clear_error(tmp_path, parts):
    path = files.write(tmp_path / "m.gguf", *parts)
    content = path.read_bytes()
    place = content.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    for number, message in [(900, "doesn't know"), (24, "kept as I8, which can't be made float32")]:
        path.write_bytes(content[:place] + struct.pack("<I", number) + content[place + 4 :])
        with pytest.raises(InputError, match=rf"blk\.0\.ffn_up\.weight .*{message}"):
            lw.load(path)


def test_a_file_that_is_cut_short_is_one_clear_error_wherever_it_ends(tmp_path, parts):
    settings = {**parts[0], "tokenizer.ggml.model": "no_vocab", "general.tags": ["one", "two"]}
    path = files.write(tmp_path / "m.gguf", settings, parts[1])
    content = path.read_bytes()
    for end in [*range(4, 2000, 37), len(content) // 2, len(content) - 40]:
        path.write_bytes(content[:end])
        with pytest.raises(InputError, match="is cut short"):
            lw.load(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"\x89PNG and so on", b"{}"])
def test_another_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match="is no GGUF file"):
        lw.load(tmp_path / "m.gguf")


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="there is no"):
        lw.load(tmp_path / "m.gguf")


def test_versions_and_types_that_are_not_known_are_one_clear_error(tmp_path):
    path = tmp_path / "m.gguf"
    for version, message in [(1, "of version 1"), (9, "of version 9"), (3 << 24, "other byte order")]:
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
        with pytest.raises(InputError, match=message):
            lw.load(path)
    name = struct.pack("<Q", 1) + b"a"
    for value in (struct.pack("<I", 77), struct.pack("<IIQ", 9, 9, 1)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + name + value)
        with pytest.raises(InputError, match="unknown type"):
            lw.load(path)
    for endless in (struct.pack("<IQ", 8, 2**63), struct.pack("<IIQ", 9, 4, 2**60), struct.pack("<IIQ", 9, 8, 2**60)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + name + endless)
        with pytest.raises(InputError, match="cut short"):
            lw.load(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"\xff")
    with pytest.raises(InputError, match="should be a text"):
        lw.load(path)
