"""Models in GGUF files, the form that llama.cpp keeps them in, read as those of transformers.

    model = lw.load("SmolLM2-135M-Instruct.Q4_1.gguf")

Quantised weights become float32, and files of Llama pair the channels that rope turns another way: their rows of W_q
and W_k are put back.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lengthwise.conversion.families import FAMILIES
from lengthwise.conversion.gguf_file import GGUFFile, read_gguf
from lengthwise.conversion.gguf_tokenizer import tokenizer_of
from lengthwise.errors import InputError, unknown
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.rope import RoPE, permute_rows

PAIRED = {"llama": "interleaved", "qwen2": "half"}
"""The architectures that are known, by the names that GGUF and transformers share, and how rope pairs channels."""

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names and those of transformers, outside of the layers and in each."""

FREQUENCIES = "rope_freqs.weight"
"""What each θ of rope is divided by."""


def load_gguf(path: Path) -> LanguageModel:
    """The model in a GGUF file, in float32, with its tokenizer.

    Raises InputError for another file, an architecture, a form of weights, a scaling of rope or a tokenizer that isn't
    known, and for a file that is cut short or lacks something.
    """
    file = read_gguf(path)
    architecture = file.setting("general.architecture", str)
    if architecture not in PAIRED:
        raise unknown("architecture of GGUF", architecture, PAIRED)
    settings = settings_of(file, architecture)
    names = names_of(file, settings["num_hidden_layers"])
    file.require_whole()
    tokenizer = tokenizer_of(file, settings["vocab_size"])
    weights = {names.get(name, name): weight(file, name, settings) for name in file.stored if name != FREQUENCIES}
    model = FAMILIES[architecture].load(settings, str(path), weights, path)
    assert isinstance(model, LanguageModel)
    model.tokenizer = tokenizer
    return model


def settings_of(file: GGUFFile, architecture: str) -> dict[str, Any]:
    """The settings by transformers' names."""

    def size(name: str, default: int | None = None) -> int:
        return file.setting(f"{architecture}.{name}", int, default)

    def number(name: str, default: float | None = None) -> float:
        return file.setting(f"{architecture}.{name}", float, default)

    if "token_embd.weight" not in file.stored:
        raise InputError(f"{file.path} lacks the tensor token_embd.weight")
    if size("expert_count", 0):
        raise InputError(f"{file.path} is a mixture of {size('expert_count')} experts; lengthwise reads dense models")
    dim, heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", dim // max(heads, 1))
    if size("rope.dimension_count", head_dim) != head_dim or size("attention.value_length", head_dim) != head_dim:
        raise InputError(f"{file.path} turns a part of a head or has values of another width than keys' {head_dim}")
    base = number("rope.freq_base", 10000.0)
    return {
        "hidden_size": dim,
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": size("feed_forward_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "vocab_size": file.stored["token_embd.weight"].shape[0],
        "attention_bias": "blk.0.attn_output.bias" in file.stored,
        "tie_word_embeddings": "output.weight" not in file.stored,
        "rope_parameters": {"rope_theta": base, **scaling_of(file, architecture, base, head_dim)},
    }


def scaling_of(file: GGUFFile, architecture: str, base: float, head_dim: int) -> dict[str, Any]:
    """How rope is scaled, as transformers' rope_parameters."""
    if FREQUENCIES in file.stored:
        return by_parts(file, base, head_dim)
    kind = file.setting(f"{architecture}.rope.scaling.type", str, "none")
    factor = file.metadata.get(f"{architecture}.rope.scaling.factor")
    if kind == "none":
        old = file.setting(f"{architecture}.rope.scale_linear", float, 1.0)
        return {} if old == 1 else {"rope_type": "linear", "factor": old}
    if kind != "linear" or not isinstance(factor, int | float):
        known = "linear, with a factor, and the rope_freqs.weight of Llama 3.1"
        raise InputError(f"{file.path} scales rope by {kind!r} with the factor {factor}; lengthwise knows {known}")
    return {"rope_type": "linear", "factor": factor}


def by_parts(file: GGUFFile, base: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.1's scaling, which files keep as what each θ is divided by: found from those between 1 and the whole
    scale, and verified on all. It is always from 1 to 4 turns."""
    divided = file.tensor(FREQUENCIES).double()
    scale = float(f"{divided.max():.6g}")  # as it was before it was rounded to float32
    between = (divided > 1.001) & (divided < 0.999 * scale)
    if divided.ndim == 1 and 2 * len(divided) == head_dim and between.any():
        kept = (1 / divided - 1 / scale) / (1 - 1 / scale)
        turns = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim) / (2 * math.pi)
        trained = round(float(((1 + 3 * kept) / turns)[between].median()))
        made = RoPE(base=base, scale=scale, trained=trained).slowed(head_dim)
        if torch.allclose(1 / torch.as_tensor(made), divided, rtol=1e-3):
            sizes = {"original_max_position_embeddings": trained, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            return {"rope_type": "llama3", "factor": scale, **sizes}
    raise InputError(
        f"{file.path} has a {FREQUENCIES} that isn't Llama 3.1's; lengthwise knows that and linear scaling"
    )


def names_of(file: GGUFFile, layers: int) -> dict[str, str]:
    """Transformers' name of every tensor that a model can have. Raises InputError where one is missing that it must
    have."""
    modules = dict(OUTSIDE)
    for n in range(min(layers, len(file.stored))):  # so many layers have more tensors than there are
        modules |= {f"blk.{n}.{ours}": f"model.layers.{n}.{theirs}" for ours, theirs in INSIDE.items()}
    missing = [name for name in modules if name != "output" and f"{name}.weight" not in file.stored]
    if missing:
        raise InputError(f"{file.path} lacks the tensor {missing[0]}.weight ({len(missing)} are missing)")
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in ("weight", "bias")}


def weight(file: GGUFFile, name: str, settings: dict[str, Any]) -> Tensor:
    """A tensor as transformers has it."""
    tensor, of = file.tensor(name), name.rpartition(".")[0].rpartition(".")[2]
    if of not in ("attn_q", "attn_k"):
        return tensor
    heads = settings["num_attention_heads" if of == "attn_q" else "num_key_value_heads"]
    if len(tensor) != heads * settings["head_dim"]:
        raise InputError(f"{file.path}: {name} has {len(tensor)} rows for {heads} heads of {settings['head_dim']}")
    return permute_rows(tensor, heads, source=PAIRED[file.metadata["general.architecture"]], target="half")
