"""The kinds of models that transformers has too: how their settings and the names of their weights translate.

The settings are those of transformers' configurations, by their names there; where a file leaves one out, transformers'
own default stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lengthwise.channels.rwkv import RWKVChannels
from lengthwise.contract import SequenceModule
from lengthwise.errors import InputError
from lengthwise.mixers.falcon_mamba import FalconMamba
from lengthwise.mixers.mamba import Mamba
from lengthwise.mixers.mamba2 import Mamba2
from lengthwise.mixers.rwkv import RWKV
from lengthwise.models.language_model import LanguageModel

EPS = 1e-5
"""What norms add to the mean square or the variance."""


class Family:
    """One kind of model. A subclass says what its settings mean and where its weights are.

    model_type, architecture: transformers' names of it.
    part: the mixer that its layers have.
    only: settings that lengthwise has at one value alone, and that value.
    lifted: the last parts of the names of vectors that transformers keeps as [1, 1, n].
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    part: ClassVar[type[SequenceModule]]
    only: ClassVar[Mapping[str, Any]]
    lifted: ClassVar[frozenset[str]] = frozenset()

    def has(self, model: LanguageModel) -> bool:
        """Whether the model has this family's mixer."""
        return any(type(module) is self.part for module in model.modules())

    def arguments(self, settings: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The arguments of the LanguageModel that the settings describe. `source` is named in errors."""
        for name, value in self.only.items():
            if settings.get(name, value) != value:
                raise InputError(f"{source} has {name} = {settings[name]}; lengthwise has {value} alone")
        return self.translate(Reader(settings, source))

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the LanguageModel."""
        raise NotImplementedError

    def settings(self, model: LanguageModel) -> dict[str, Any]:
        """The settings of a model that has this family's mixer."""
        mixers = [module for module in model.modules() if type(module) is self.part]
        return {
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "num_hidden_layers": len(mixers),
            "tie_word_embeddings": model.config["tie"],
            **self.only,
            **self.of_mixer(model, mixers[0]),
        }

    def of_mixer(self, model: LanguageModel, mixer: SequenceModule) -> dict[str, Any]:
        """The settings that a mixer has."""
        raise NotImplementedError

    def names(self, model: LanguageModel) -> dict[str, str]:
        """Transformers' name of every weight, the head's too where it is tied."""
        prefixes = self.prefixes(len(model.stack.layers))
        found = {}
        for name in model.state_dict():
            ours, theirs = next(pair for pair in prefixes if name.startswith(pair[0] + "."))
            found[name] = theirs + name[len(ours) :]
        return found

    def prefixes(self, count: int) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs, for a stack of `count` modules."""
        layers = [
            (f"stack.layers.{n}.{ours}", f"backbone.layers.{n}.{theirs}")
            for n in range(count)
            for ours, theirs in (("part", "mixer"), ("norm", "norm"))
        ]
        return [("embedding", "backbone.embeddings"), ("head", "lm_head"), ("norm", "backbone.norm_f"), *layers]


class Reader:
    """Reads settings, and says which is wrong where one is."""

    def __init__(self, settings: Mapping[str, Any], source: str):
        self.settings, self.source = settings, source

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 up."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            given = "lacks it" if name not in self.settings else f"has {value!r}"
            raise InputError(f"{name} must be a whole number from 1 up; {self.source} {given}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name} must be a number; {self.source} has {value!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Yes or no."""
        value = self.settings.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false; {self.source} has {value!r}")
        return value


class MambaFamily(Family):
    """Mamba, as state-spaces/mamba-130m-hf."""

    model_type = "mamba"
    architecture = "MambaForCausalLM"
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
    architecture = "FalconMambaForCausalLM"
    part = FalconMamba
    only: ClassVar = {**MambaFamily.only, "mixer_rms_eps": 1e-6}


class Mamba2Family(Family):
    """Mamba-2, as mistralai/Mamba-Codestral-7B-v0.1."""

    model_type = "mamba2"
    architecture = "Mamba2ForCausalLM"
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


class RWKVFamily(Family):
    """RWKV-4, as RWKV/rwkv-4-169m-pile. Nothing is rescaled, as transformers does for half precision."""

    model_type = "rwkv"
    architecture = "RwkvForCausalLM"
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

    def prefixes(self, count: int) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs, for a stack of `count` modules."""
        layers = []
        for n in range(count // 2):
            for place, (norm, part) in enumerate((("ln1", "attention"), ("ln2", "feed_forward"))):
                ours, theirs = f"stack.layers.{1 + 2 * n + place}", f"rwkv.blocks.{n}"
                layers += [(f"{ours}.norm", f"{theirs}.{norm}"), (f"{ours}.part", f"{theirs}.{part}")]
        ends = [("embedding", "rwkv.embeddings"), ("head", "head"), ("norm", "rwkv.ln_out")]
        return [*ends, ("stack.layers.0.norm", "rwkv.blocks.0.pre_ln"), *layers]


def arguments(values: Mapping[str, Any]) -> str:
    """Arguments as an expression writes them."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def ratio(a: int, b: int) -> int | float:
    """a / b, whole where it is."""
    return a / b if a % b else a // b


FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (MambaFamily(), FalconMambaFamily(), Mamba2Family(), RWKVFamily())
}
"""The families, by transformers' model_type."""
