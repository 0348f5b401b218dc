"""A trained model read from several perspectives, for a brief fine-tuning.

    from lengthwise.conversion import add_perspectives, train_only

    model = add_perspectives(base, views=4)          # computes what the base computes
    train_only(model, "perspectives")                # some thousandths of the parameters

Dumitru et al. 2024, arXiv 2402.02625.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from lengthwise.errors import InputError, unknown
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.perspectives import Perspectives

TRAINED = ("all", "perspectives")
"""What can be trained of a model with perspectives."""


@torch.no_grad()
def add_perspectives(base: LanguageModel, views: int, blend: str = "learned") -> LanguageModel:
    """A model with the weights of `base` whose layers are read from several perspectives, all like the base's at first.

    Raises InputError where no part of the base can be read so.
    """
    config = base.config | {"layers": f"perspectives({base.config['layers']}, views={views}, blend={blend})"}
    model = LanguageModel(**config).to(next(base.parameters()))
    whole = model.stack.layers[0]
    if not isinstance(whole, Perspectives):
        raise InputError(f"the layers can't be read from several perspectives: {base.config['layers']}")
    tensors = model.state_dict()
    for name, tensor in base.state_dict().items():
        tensors[renamed(name)].copy_(tensor)  # one vector of a base is copied to all views
    return model


def renamed(name: str) -> str:
    """Where a tensor of a model stands in the model with perspectives: its layers and its norm are inside of them."""
    return re.sub(r"^norm\.", "stack.layers.0.norm.", re.sub(r"^stack\.", "stack.layers.0.stack.", name))


def train_only(model: nn.Module, train: str = "perspectives") -> list[nn.Parameter]:
    """Let "all" parameters be trained, or those alone that the perspectives have brought; the latter in a list.

    Raises InputError for a model without perspectives and for another word.
    """
    if train not in TRAINED:
        raise unknown("choice of what to train", train, TRAINED)
    found = [p for module in model.modules() if isinstance(module, Perspectives) for p in module.own_parameters()]
    if not found:
        raise InputError("the model has no perspectives; add_perspectives gives it some")
    own: set[Tensor] = set(found)
    for parameter in model.parameters():
        parameter.requires_grad_(train == "all" or parameter in own)
    return found
