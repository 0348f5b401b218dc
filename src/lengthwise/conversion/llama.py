"""Llama and the models that differ from it in little: Mistral, with its window, and Qwen2, with its biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn, zeros_like

from lengthwise.channels.swiglu import SwiGLU
from lengthwise.conversion.family import Family, Reader, arguments, join_rows, part_rows
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.attention import Attention
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.stack import EPS
from lengthwise.positions.rope import RoPE

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The linear maps of attention, by the names that both sides have for them."""

GATED, JOINED = (".gate_proj.", ".up_proj."), ".gate_up_proj."


class LlamaFamily(Family):
    """Llama, as meta-llama/Llama-3.2-1B and HuggingFaceTB/SmolLM2-135M."""

    model_type = "llama"
    architectures: ClassVar = {"LlamaForCausalLM": LanguageModel}
    part = Attention
    only: ClassVar = {"hidden_act": "silu"}
    qkv_bias: ClassVar[bool | None] = None
    """Whether queries, keys and values have biases, where the settings don't say."""

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the LanguageModel."""
        dim, heads = read.size("hidden_size"), read.size("num_attention_heads")
        sizes: dict[str, Any] = {"heads": heads}
        kv_heads = read.size("num_key_value_heads", heads)
        width = read.size("head_dim", dim // heads) if read.settings.get("head_dim") is not None else dim // heads
        if kv_heads != heads:
            sizes["kv_heads"] = kv_heads
        if width * heads != dim:
            sizes["head_dim"] = width
        sizes |= self.window(read)
        if read.flag("attention_bias", False) if self.qkv_bias is None else self.qkv_bias:
            sizes["bias"] = "true"
        channels = {"hidden": read.size("intermediate_size")}
        if read.flag("mlp_bias", False):
            channels["bias"] = "true"  # type: ignore[assignment]
        layers = read.size("num_hidden_layers")
        eps = read.number("rms_norm_eps", 1e-6)
        return {
            "vocab_size": read.size("vocab_size"),
            "dim": dim,
            "layers": f"{layers}*(attention({arguments(sizes)}) + swiglu({arguments(channels)}))",
            "position": f"rope({arguments(rope_arguments(read))})",
            "norm": "rmsnorm" if eps == EPS else f"rmsnorm(eps={eps})",
            "tie": read.flag("tie_word_embeddings", False),
        }

    def window(self, read: Reader) -> dict[str, int]:  # noqa: ARG002
        """The window that attention sees, as an argument; nothing where it sees all."""
        return {}

    def settings(self, model: LanguageModel) -> dict[str, Any]:
        """The settings of a model that has this family's mixer."""
        mixers = [module for module in model.modules() if isinstance(module, Attention)]
        channels = next((module for module in model.modules() if isinstance(module, SwiGLU)), None)
        if channels is None or not isinstance(mixers[0].position, RoPE):
            raise InputError("a model of this family is made of attention with rope and swiglu")
        return {
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": len(mixers),
            "num_attention_heads": mixers[0].heads,
            "num_key_value_heads": mixers[0].kv_heads,
            "head_dim": mixers[0].head_dim,
            "intermediate_size": channels.down.in_features,
            "mlp_bias": channels.down.bias is not None,
            "attention_bias": mixers[0].o_proj.bias is not None,
            "rms_norm_eps": getattr(model.norm, "eps", EPS),
            "rope_parameters": rope_parameters(mixers[0].position),
            "tie_word_embeddings": model.config["tie"],
        }

    def prefixes(self, model: LanguageModel) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs."""
        found = [("embedding", "model.embed_tokens"), ("head", "lm_head"), ("norm", "model.norm")]
        for n in range(len(model.stack.layers) // 2):
            attention, channels = (f"stack.layers.{2 * n + place}" for place in (0, 1))
            theirs = f"model.layers.{n}"
            found += [
                (f"{attention}.norm", f"{theirs}.input_layernorm"),
                (f"{attention}.part", f"{theirs}.self_attn"),
                (f"{channels}.norm", f"{theirs}.post_attention_layernorm"),
                (f"{channels}.part.gate_up", f"{theirs}.mlp.gate_up_proj"),
                (f"{channels}.part.down", f"{theirs}.mlp.down_proj"),
            ]
        return found

    def read(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of transformers by our names, the gate's and the others' rows in one matrix."""
        joined = join_rows(tensors, GATED, JOINED)
        return super().read(model, {name: t for name, t in joined.items() if not name.endswith("rotary_emb.inv_freq")})

    def write(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights by transformers' names, each once."""
        tensors = super().write(model)
        return part_rows(tensors, (name for name in tensors if JOINED in name), GATED, JOINED)


class MistralFamily(LlamaFamily):
    """Mistral, as mistralai/Mistral-7B-v0.1: Llama with a window. Written as Llama where it has none."""

    model_type = "mistral"
    architectures: ClassVar = {"MistralForCausalLM": LanguageModel}

    def window(self, read: Reader) -> dict[str, int]:
        """The window that attention sees, as an argument; nothing where it sees all."""
        given = read.settings.get("sliding_window", 4096)
        return {} if given is None else {"window": read.size("sliding_window", 4096)}

    def settings(self, model: LanguageModel) -> dict[str, Any]:
        """The settings of a model that has this family's mixer."""
        found = super().settings(model)
        mixer = next(module for module in model.modules() if isinstance(module, Attention))
        plain = {name: value for name, value in found.items() if name not in ("attention_bias", "mlp_bias")}
        return {**plain, "sliding_window": mixer.window}


class Qwen2Family(LlamaFamily):
    """Qwen2, as Qwen/Qwen2.5-0.5B: Llama with biases of queries, keys and values. Written as Llama, whose output map
    has a bias too, of zeros."""

    model_type = "qwen2"
    architectures: ClassVar = {"Qwen2ForCausalLM": LanguageModel}
    only: ClassVar = {**LlamaFamily.only, "use_sliding_window": False}
    qkv_bias = True

    def has(self, model: nn.Module) -> bool:  # noqa: ARG002
        """No model is written as this."""
        return False

    def read(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of transformers by our names, and the zeros."""
        found = super().read(model, tensors)
        missing = {name: t for name, t in model.state_dict().items() if name.endswith("o_proj.bias")}
        return {**{name: zeros_like(tensor) for name, tensor in missing.items()}, **found}


def rope_arguments(read: Reader) -> dict[str, Any]:
    """The arguments of rope, from `rope_parameters` or, in files of transformers before 5, from `rope_theta` and
    `rope_scaling`."""
    given = read.settings.get("rope_parameters") or read.settings.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{read.source} has rope_parameters that are no mapping of names to values: {given!r}")
    inner = Reader(given, f"the rope_parameters of {read.source}")
    base = inner.number("rope_theta", read.number("rope_theta", 10000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in SCALINGS:
        raise unknown("rope_type", str(kind), SCALINGS)
    if inner.number("partial_rotary_factor", 1.0) != 1 or inner.number("attention_factor", 1.0) != 1:
        raise InputError(f"{inner.source} turn a part of a head or rescale attention, which this family doesn't know")
    needed = [name for name in SCALINGS[kind] if name not in given]
    if needed:
        raise InputError(f"{inner.source} of rope_type {kind!r} lack {', '.join(needed)}")
    values = {ours: inner.number(name, 1.0) for name, ours in SCALINGS[kind].items()}
    return {"base": base, **values}


SCALINGS = {
    "default": {},
    "linear": {"factor": "scale"},
    "llama3": {
        "factor": "scale",
        "original_max_position_embeddings": "trained",
        "low_freq_factor": "slow",
        "high_freq_factor": "fast",
    },
}
"""The scalings of rope, by transformers' names, with what each needs and the argument that this is of ours."""


def rope_parameters(rope: RoPE) -> dict[str, Any]:
    """What transformers says of a rope that turns whole heads by halves."""
    kind = "llama3" if rope.trained is not None else "default" if rope.scale == 1 else "linear"
    values = {name: getattr(rope, ours) for name, ours in SCALINGS[kind].items()}
    return {"rope_theta": rope.base, "rope_type": kind, **values}
