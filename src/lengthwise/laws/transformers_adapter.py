"""Holds causal language models of Hugging Face transformers to the laws.

A model becomes a `SequenceModule`: tokens in, logits out, and its cache (`cache`, or before release 5.24
`past_key_values` and `cache_params`; `state`) as the state. A transformers cache is changed in place by the model; here
it is taken apart into tensors and put together anew for every call, so that it is a value.

Needs the extra `[hf]`.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.contract import Layout, SequenceModule, State, StateTree
from lengthwise.errors import InputError, unknown

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params", "state")
"""What models of transformers call their cache, in arguments and outputs alike."""

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "state_size": 8,
    "num_heads": 4,
    "head_dim": 16,
    "n_groups": 1,
    "chunk_size": 8,
    "sliding_window": 8,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A small configuration, out of which a class takes what it knows."""

HYBRID = {"block_types", "layer_types", "full_attention_interval"}
"""Settings of classes whose layers differ: these get four, to have each kind."""

LACKS = {
    "packed": "transformers' models take no documents",
    "value": "a transformers cache is changed in place on purpose; it is copied here",
    "fast": "calls no op of lengthwise",
    "gradients": "the models compute in float32 inside, whatever their precision",
    "bfloat16": "transformers promises nothing about it",
    "lengths": "transformers promises nothing about empty input",
    "growth": "transformers' models declare none",
}
"""Laws that ask for what these models don't have."""


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor in the frame of a cache."""

    index: int


def take_apart(cache: Any, tensors: list[Tensor]) -> Any:
    """A copy of the cache with its tensors replaced by slots, the tensors appended to `tensors`."""
    if isinstance(cache, Tensor):
        tensors.append(cache.detach().clone())
        return _Slot(len(tensors) - 1)
    return _rebuild(cache, lambda item: take_apart(item, tensors))


def put_together(frame: Any, tensors: tuple[Tensor, ...]) -> Any:
    """A cache in memory of its own."""
    if isinstance(frame, _Slot):
        return tensors[frame.index].clone()
    return _rebuild(frame, lambda item: put_together(item, tensors))


def _rebuild(thing: Any, fn: Callable[[Any], Any]) -> Any:
    if isinstance(thing, (list, tuple)):
        return type(thing)(map(fn, thing))
    if isinstance(thing, dict):
        return type(thing)((key, fn(item)) for key, item in thing.items())
    if (
        type(thing).__module__.startswith("transformers")
        and hasattr(thing, "__dict__")
        and "Config" not in str(type(thing))
    ):
        new = copy.copy(thing)
        new.__dict__.update({key: fn(item) for key, item in vars(thing).items()})
        return new
    return thing


@dataclass(frozen=True)
class CacheState(State):
    """A transformers cache as a value: its tensors, what holds them, and which of the tokens so far are no padding."""

    tensors: tuple[Tensor, ...]
    mask: Int[Tensor, "batch seen"]
    frame: Any

    def select(self, index: Int[Tensor, " rows"]) -> CacheState:
        """The cache of the given rows. Counters have no rows and stay."""
        rows = self.mask.shape[0]
        return self.map(lambda t: t.index_select(0, index) if t.ndim > 1 and t.shape[0] == rows else t)


class TransformersModel(SequenceModule):
    """A causal language model of transformers under the contract: tokens [batch, length] to logits, cache as state."""

    law_dtype = torch.float32
    law_stirs = False
    compiles = False

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        arguments = inspect.signature(model.forward).parameters
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.attends = hasattr(config, "num_attention_heads")
        self.cache_argument = next((name for name in CACHE_ARGUMENTS if name in arguments), None)
        self.takes_positions = "position_ids" in arguments
        self.lacks = dict(LACKS)
        if self.cache_argument is None or not self._gives_cache(self.cache_argument):
            self.cache_argument = None
            self.lacks["resumable"] = "the class takes no cache, or gives none back"

    @torch.no_grad()
    def _gives_cache(self, name: str) -> bool:
        tokens = torch.zeros(1, 2, dtype=torch.long)
        return getattr(self.model.eval()(input_ids=tokens, use_cache=True), name, None) is not None

    def forward(
        self, x: Int[Tensor, "batch length"], state: StateTree = None, layout: Layout | None = None
    ) -> tuple[Float[Tensor, "batch length vocab"], StateTree]:
        """Logits and the cache."""
        mask = new = torch.ones_like(x) if layout is None else (~layout.padding).long()
        if state is not None:
            mask = torch.cat([state.mask, new], dim=1)
        # Attention needs to know of the padding in its cache; a recurrence takes the mask of the new tokens only.
        told = mask if self.attends else new
        arguments: dict[str, Any] = {}
        if not bool(told.all()):
            arguments["attention_mask"] = told
            if self.takes_positions:
                arguments["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -x.shape[1] :]
        if self.cache_argument:
            arguments["use_cache"] = True
            if state is not None:
                arguments[self.cache_argument] = put_together(state.frame, state.tensors)
        given = self.model(input_ids=x, **arguments)
        if self.cache_argument is None:
            return given.logits, None
        cache = getattr(given, self.cache_argument)
        tensors: list[Tensor] = []
        frame = take_apart(cache, tensors)
        return given.logits, CacheState(tuple(tensors), mask, frame)


@dataclass(frozen=True)
class Origin:
    """How to get a transformers model: a class with a tiny configuration, or a folder."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    folder: Path | None = None

    def __call__(self) -> TransformersModel:
        """The model, random parameters drawn from torch's generator."""
        transformers = _transformers()
        cls = getattr(transformers, self.name)
        try:
            if self.folder is None:
                return TransformersModel(cls(cls.config_class(**dict(self.settings))))
            options = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
            return TransformersModel(cls.from_pretrained(self.folder, dtype=torch.float32, **options))
        except Exception as error:
            what = "a tiny configuration of it" if self.folder is None else str(self.folder)
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"transformers can't make {self.name} from {what}: {type(error).__name__}: {reason}"
            ) from error

    def code(self, seed: int) -> list[str]:
        """Lines of Python that make the same model without lengthwise."""
        if self.folder is not None:
            loaded = f"{self.name}.from_pretrained({str(self.folder)!r}, dtype=torch.float32, use_safetensors=True)"
            return ["import torch", f"from transformers import {self.name}", "", f"model = {loaded}.eval()"]
        config = getattr(_transformers(), self.name).config_class.__name__
        settings = ", ".join(f"{key}={item!r}" for key, item in self.settings)
        return [
            "import torch",
            f"from transformers import {config}, {self.name}",
            "",
            f"torch.manual_seed({seed})",
            f"config = {config}({settings})",
            f"model = {self.name}(config).eval()",
        ]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError('transformers is not installed; pip install "lengthwise[hf]"') from None
    transformers.logging.set_verbosity_error()
    return transformers


def tiny(name: str) -> Origin:
    """A class of transformers by name, with a tiny random configuration. Raises InputError where there is none."""
    transformers = _transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = {item for item in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() if isinstance(item, str)}
    if not re.fullmatch(r"\w+", name) or name not in known:
        raise unknown("causal language model of transformers", name, known)
    config = getattr(transformers, name).config_class
    defaults = {key: p.default for key, p in inspect.signature(config.__init__).parameters.items()}
    renamed = set(getattr(config, "attribute_map", {}))
    taken = {key: item for key, item in TINY.items() if key in defaults and key not in renamed}
    # Where the class has None, it derives the number from the others; small token ids are in the small vocabulary.
    derived = ("head_dim", "num_key_value_heads", "sliding_window")
    taken = {key: item for key, item in taken.items() if not (key in derived and defaults[key] is None)}
    ids = ("pad_token_id", "bos_token_id", "eos_token_id")
    large = [key for key in ids if isinstance(defaults.get(key), int) and defaults[key] >= TINY["vocab_size"]]
    taken = {key: item for key, item in taken.items() if key not in ids or key in large}
    if "num_attention_heads" in taken and "num_heads" not in taken and "head_dim" in taken:
        taken["head_dim"] = 8
    if not HYBRID.isdisjoint(defaults) and "num_hidden_layers" in taken:
        taken["num_hidden_layers"] = 4
    return Origin(name, tuple(taken.items()))


def from_folder(folder: Path, architecture: str) -> Origin:
    """A model saved by transformers. Only safetensors are read, and no code of the folder's."""
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no .safetensors file; other formats can run code when they are read")
    if not hasattr(_transformers(), architecture):
        raise InputError(
            f"{folder} is a {architecture}, which transformers doesn't have; code of the folder is not run"
        )
    return Origin(architecture, (), folder)
