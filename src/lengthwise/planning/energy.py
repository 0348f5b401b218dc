"""The energy of a model's matrix products, by counting operations.

    E = E_MAC Σ products with real inputs + E_AC Σ f · products driven by spikes

    E_MAC = 4.6 pJ, a multiplication and an addition; E_AC = 0.9 pJ, an addition alone

A map whose inputs are 0 or 1 multiplies nothing: each input that fires, a share f of them, adds a column of weights. So
spikes save where they are rare and the hardware skips what doesn't fire; a processor or a GPU does all the products.

The energies are those of numbers of 32 bits at 45 nm without reaching for memory, Horowitz 2014, "Computing's energy
problem (and what we can do about it)", ISSCC. Matrix products, convolutions and PyTorch's attention are counted; norms,
recurrences and whatever else a fused kernel computes are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lengthwise.errors import InputError, unknown

MULTIPLY_ACCUMULATE = 4.6e-12
"""Joules of a multiplication of 32-bit floats, 3.7 pJ, and an addition."""

ACCUMULATE = 0.9e-12
"""Joules of an addition of 32-bit floats."""


@dataclass(frozen=True)
class Operations:
    """multiplied: multiply-accumulates with real inputs. driven: those of maps that spikes drive, were they done.
    added: the additions that the spikes trigger in their place."""

    multiplied: float
    driven: float = 0.0
    added: float = 0.0

    @property
    def triggered(self) -> float:
        """Additions over what would be multiplied and added without spikes, where spikes drive; 0 where they don't."""
        return self.added / self.driven if self.driven else 0.0


def count_operations(model: nn.Module, *inputs: Any, rates: Mapping[str, float] | None = None) -> Operations:
    """The operations of `model(*inputs)`, which is run once.

    rates: for modules whose inputs are spikes, by their names in the model, the share of inputs that are 1.
    Raises InputError for a name that the model doesn't have, a rate outside of 0 to 1, and rates of a module and of
    another inside of it.
    """
    rates = {} if rates is None else rates
    known = [name for name, _ in model.named_modules() if name]
    for name, rate in rates.items():
        if name not in known:
            raise unknown("module", name, known)
        if not 0 <= rate <= 1:
            raise InputError(f"the rate of {name} must be a share from 0 to 1, got {rate}")
        if any(other.startswith(f"{name}.") for other in rates):
            raise InputError(f"{name} and a module inside of it both have a rate; give that of the one or the other")
    products = count_products(model, *inputs)
    driven = {name: products.get(name, 0) for name in rates}
    added = sum(rates[name] * count for name, count in driven.items())
    return Operations(products[""] - sum(driven.values()), sum(driven.values()), added)


@torch.no_grad()
def count_products(model: nn.Module, *inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of `model(*inputs)` in each module that has any, by name; "" is the whole model."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        model(*inputs)
    whole = type(model).__name__
    counts = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    inside = {name.removeprefix(f"{whole}."): n for name, n in counts.items() if name.startswith(f"{whole}.")}
    return {"": counts.get("Global", 0), **inside}


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def joules(
    operations: Operations, multiply_accumulate: float = MULTIPLY_ACCUMULATE, accumulate: float = ACCUMULATE
) -> float:
    """The energy of operations: E of this module's formula."""
    return multiply_accumulate * operations.multiplied + accumulate * operations.added
