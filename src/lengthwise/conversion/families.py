"""The kinds of models that transformers has too: how their settings and the names of their weights translate.

The settings are those of transformers' configurations, by their names there; where a file leaves one out, transformers'
own default stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lengthwise.channels.rwkv import RWKVChannels
from lengthwise.contract import SequenceModule
from lengthwise.conversion.family import EPS, Family, Reader, arguments, ratio
from lengthwise.conversion.led import LEDFamily
from lengthwise.conversion.llama import LlamaFamily, MistralFamily, Qwen2Family
from lengthwise.conversion.longformer import LongformerFamily
from lengthwise.conversion.t5 import T5Family
from lengthwise.errors import InputError
from lengthwise.mixers.falcon_mamba import FalconMamba
from lengthwise.mixers.mamba import Mamba
from lengthwise.mixers.mamba2 import Mamba2
from lengthwise.mixers.rwkv import RWKV
from lengthwise.models.language_model import LanguageModel


class LanguageModelFamily(Family):
    """Language models whose layers are all alike, each of one mixer or of a mixer and its channels."""

    def settings(self, model: LanguageModel) -> dict[str, Any]:
        """The settings of a model that has this family's mixer."""
        mixers = [module for module in model.modules() if type(module) is self.part]
        return {
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": len(mixers),
            "tie_word_embeddings": model.config["tie"],
            **self.of_mixer(model, mixers[0]),
        }

    def of_mixer(self, model: LanguageModel, mixer: SequenceModule) -> dict[str, Any]:
        """The settings that a mixer has."""
        raise NotImplementedError

    def prefixes(self, model: LanguageModel) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs."""
        layers = [
            (f"stack.layers.{n}.{ours}", f"backbone.layers.{n}.{theirs}")
            for n in range(len(model.stack.layers))
            for ours, theirs in (("part", "mixer"), ("norm", "norm"))
        ]
        return [("embedding", "backbone.embeddings"), ("head", "lm_head"), ("norm", "backbone.norm_f"), *layers]


class MambaFamily(LanguageModelFamily):
    """Mamba, as state-spaces/mamba-130m-hf."""

    model_type = "mamba"
    architectures: ClassVar = {"MambaForCausalLM": LanguageModel}
    part = Mamba
    only: ClassVar = {"hidden_act": "silu", "use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": EPS}

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the LanguageModel."""
        dim, layers = read.size("hidden_size"), read.size("num_hidden_layers")
        sizes = {
            "expansion": read.size("intermediate_size", int(read.number("expand", 2) * dim)) / dim,
            "state_dim": read.size("state_size", 16),
            "kernel": read.size("conv_kernel", 4),
        }
        if read.settings.get("time_step_rank", "auto") != "auto":
            sizes["dt_rank"] = read.size("time_step_rank")
        return {
            "vocab_size": read.size("vocab_size"),
            "dim": dim,
            "layers": f"{layers}*{self.model_type}({arguments(sizes)})",
            "position": "none",
            "tie": read.flag("tie_word_embeddings", True),
        }

    def of_mixer(self, model: LanguageModel, mixer: SequenceModule) -> dict[str, Any]:
        """The settings that a mixer has."""
        assert isinstance(mixer, Mamba)
        return {
            "expand": ratio(mixer.width, model.dim),
            "intermediate_size": mixer.width,
            "state_size": mixer.state_dim,
            "conv_kernel": mixer.kernel,
            "time_step_rank": mixer.split[0],
        }


class FalconMambaFamily(MambaFamily):
    """Falcon Mamba, as tiiuae/falcon-mamba-7b."""

    model_type = "falcon_mamba"
    architectures: ClassVar = {"FalconMambaForCausalLM": LanguageModel}
    part = FalconMamba
    only: ClassVar = {**MambaFamily.only, "mixer_rms_eps": 1e-6}


class Mamba2Family(LanguageModelFamily):
    """Mamba-2, as mistralai/Mamba-Codestral-7B-v0.1."""

    model_type = "mamba2"
    architectures: ClassVar = {"Mamba2ForCausalLM": LanguageModel}
    part = Mamba2
    only: ClassVar = {**MambaFamily.only, "time_step_limit": [0.0, {"__float__": "Infinity"}]}

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the LanguageModel."""
        dim, layers = read.size("hidden_size", 4096), read.size("num_hidden_layers", 64)
        sizes = {
            "expansion": read.size("num_heads", 128) * read.size("head_dim", 64) / dim,
            "head_dim": read.size("head_dim", 64),
            "state_dim": read.size("state_size", 128),
            "groups": read.size("n_groups", 8),
            "kernel": read.size("conv_kernel", 4),
        }
        return {
            "vocab_size": read.size("vocab_size", 32768),
            "dim": dim,
            "layers": f"{layers}*mamba2({arguments(sizes)})",
            "position": "none",
            "tie": read.flag("tie_word_embeddings", False),
        }

    def of_mixer(self, model: LanguageModel, mixer: SequenceModule) -> dict[str, Any]:
        """The settings that a mixer has."""
        assert isinstance(mixer, Mamba2)
        return {
            "expand": ratio(mixer.width, model.dim),
            "num_heads": mixer.heads,
            "head_dim": mixer.head_dim,
            "state_size": mixer.state_dim,
            "n_groups": mixer.groups,
            "conv_kernel": mixer.kernel,
        }


class RWKVFamily(LanguageModelFamily):
    """RWKV-4, as RWKV/rwkv-4-169m-pile. Nothing is rescaled, as transformers does for half precision."""

    model_type = "rwkv"
    architectures: ClassVar = {"RwkvForCausalLM": LanguageModel}
    part = RWKV
    only: ClassVar = {"layer_norm_epsilon": EPS}
    lifted = frozenset({"time_mix_key", "time_mix_value", "time_mix_receptance"})

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the LanguageModel."""
        dim, layers = read.size("hidden_size"), read.size("num_hidden_layers")
        width = read.size("attention_hidden_size", dim)
        if width != dim:
            raise InputError(
                f"{read.source} has attention_hidden_size = {width}; lengthwise has hidden_size, {dim}, alone"
            )
        hidden = read.size("intermediate_size", 4 * dim)
        return {
            "vocab_size": read.size("vocab_size"),
            "dim": dim,
            "layers": f"layernorm + {layers}*(rwkv + rwkv_channels(hidden={hidden}))",
            "position": "none",
            "norm": "layernorm",
            "tie": read.flag("tie_word_embeddings", False),
        }

    def of_mixer(self, model: LanguageModel, mixer: SequenceModule) -> dict[str, Any]:  # noqa: ARG002
        """The settings that a mixer has."""
        channels = next((m for m in model.modules() if isinstance(m, RWKVChannels)), None)
        hidden = 4 * model.dim if channels is None else channels.key.out_features
        return {"attention_hidden_size": model.dim, "intermediate_size": hidden, "rescale_every": 0}

    def prefixes(self, model: LanguageModel) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs."""
        layers = []
        for n in range(len(model.stack.layers) // 2):
            for place, (norm, part) in enumerate((("ln1", "attention"), ("ln2", "feed_forward"))):
                ours, theirs = f"stack.layers.{1 + 2 * n + place}", f"rwkv.blocks.{n}"
                layers += [(f"{ours}.norm", f"{theirs}.{norm}"), (f"{ours}.part", f"{theirs}.{part}")]
        ends = [("embedding", "rwkv.embeddings"), ("head", "head"), ("norm", "rwkv.ln_out")]
        return [*ends, ("stack.layers.0.norm", "rwkv.blocks.0.pre_ln"), *layers]


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        MambaFamily(),
        FalconMambaFamily(),
        Mamba2Family(),
        RWKVFamily(),
        LongformerFamily(),
        LEDFamily(),
        T5Family(),
        LlamaFamily(),
        MistralFamily(),
        Qwen2Family(),
    )
}
"""The families, by transformers' model_type."""
