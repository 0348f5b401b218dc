"""A trained model with other layers or more positions, and the weights that it has.

    rebuild(model, layers="2*(attention + mlp) + 10*(attention(pattern=blocks(1024, previous=1)) + mlp)")
    rebuild(encoder, layers="12*(longformer(window=256) + mlp)", length=4096)

What a token sees isn't a matter of weights, so that full attention becomes attention in a window or in blocks as it is,
to be trained further on long documents: Beltagy et al. 2020, arXiv 2004.05150; Zhang et al. 2023, arXiv 2310.12442.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from lengthwise.errors import InputError, unknown
from lengthwise.mixers.longformer import Longformer
from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.loading import build_model
from lengthwise.models.saving import own_tensors
from lengthwise.positions import Learned

M = TypeVar("M", bound=nn.Module)


def tile(table: Tensor, length: int) -> Tensor:
    """The rows again and again, so that distances within each copy are the learned ones."""
    return table.repeat(-(-length // len(table)), 1)[:length]


def interpolate(table: Tensor, length: int) -> Tensor:
    """The rows stretched evenly from the first to the last."""
    return nn.functional.interpolate(table.T[None], length, mode="linear", align_corners=True)[0].T


FILLS: dict[str, Callable[[Tensor, int], Tensor]] = {"tile": tile, "interpolate": interpolate}
"""How a table of positions becomes longer, by name."""


def rebuild(model: M, *, layers: str | None = None, length: int | None = None, fill: str = "tile") -> M:
    """A model like the given one, with copies of its weights and its tokenizer.

    layers: its expression, where it is to be another; the parts must have weights of the same names and shapes. Global
    projections of `longformer` that the model doesn't have begin as copies of the local ones. length: of its table of
    learned positions. fill: "tile" or "interpolate", what the further positions begin as.

    Raises InputError where weights don't fit, and where there is no table to lengthen.
    """
    if not isinstance(model, LanguageModel | Encoder):
        raise InputError(f"rebuild takes a LanguageModel or an Encoder, got {type(model).__name__}")
    if fill not in FILLS:
        raise unknown("fill", fill, FILLS)
    config = dict(model.config)
    if layers is not None:
        config["layers"] = layers
    if length is not None:
        if not isinstance(model.position, Learned):
            raise InputError(f"only a table of learned positions has a length, and the model has {config['position']}")
        config["position"] = f"learned(length={length})"
    built = build_model({"model": type(model).__name__, "config": config})
    have, want = own_tensors(model), own_tensors(built)
    missing = [name for name in want if name not in have and ".global_" not in name]
    extra = sorted(have.keys() - want.keys())
    if missing or extra:
        raise InputError(
            f"the weights don't fit: the new layers {'lack' if extra else 'also have'} {(missing or extra)[0]!r}"
        )
    with torch.no_grad():
        for name, tensor in want.items():
            if name in have:
                given = have[name]
                if name == "position.weight" and len(given) != len(tensor):
                    given = FILLS[fill](given, len(tensor))
                if given.shape != tensor.shape:
                    raise InputError(f"{name!r} is {list(given.shape)} and should be {list(tensor.shape)}")
                tensor.copy_(given)
    built.tokenizer = model.tokenizer  # type: ignore[assignment]
    for name, part in built.named_modules():
        if isinstance(part, Longformer) and f"{name}.global_q_proj.weight" not in have:
            part.copy_projections()
    return built.train(model.training)  # type: ignore[return-value]
