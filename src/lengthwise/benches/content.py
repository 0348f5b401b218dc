"""What choosing by content costs, against the attention that it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from lengthwise.benches.row import Row
from lengthwise.contract import SequenceModule
from lengthwise.measure import interleaved
from lengthwise.models.build import build
from lengthwise.models.vcc import Vcc
from lengthwise.ops.clustering import nearest, neighbours
from lengthwise.ops.gathered_attention import gathered_attention

LENGTH, HEADS, DIM, CLUSTERS, MEMBERS = 4096, 4, 64, 16, 256
VCC_LENGTH, VCC_DIM, BLOCK, FINE, PLACES = 4112, 256, 16, 16, 16


def content() -> Iterator[Row]:
    """Routing heads and layers compressed around important tokens, each with what its choice costs."""
    yield from routing(LENGTH, trained=False)
    yield from routing(LENGTH, trained=True)
    yield from vcc(VCC_LENGTH, trained=False)
    yield from vcc(VCC_LENGTH, trained=True)


@dataclass(frozen=True)
class Times:
    """Seconds of a form that chooses, of the same work on what was chosen alone, and of a form without a choice."""

    whole: float
    alone: float
    full: float

    @property
    def choice(self) -> float:
        """What choosing, gathering and putting back costs."""
        return self.whole - self.alone

    @property
    def saved(self) -> float:
        """What a full form costs beyond the attention to what was chosen."""
        return self.full - self.alone

    def rows(self, name: str, peer: str) -> Iterator[Row]:
        """The form against the full one, and its choice against what it saves."""
        yield Row(name, self.whole, {peer: self.full / self.whole})
        note = f"{self.choice / self.saved:.2f} of what it saves"
        yield Row(f"the choice of {name}", self.choice, {"the work it saves": self.saved / self.choice}, note=note)


def routing(length: int, *, trained: bool) -> Iterator[Row]:
    """Heads that attend inside clusters: assignment, sort, gathering and scattering are the choice."""
    torch.manual_seed(0)
    z = F.layer_norm(torch.randn(1, length, HEADS, DIM), (DIM,))
    v, centroids = torch.randn_like(z), F.layer_norm(torch.randn(HEADS, CLUSTERS, DIM), (DIM,))
    sets = neighbours(nearest(z, centroids), MEMBERS)
    count, chosen, read = sets.index.shape[2], sets.index.shape[3], sets.read.shape[3]
    q, k = torch.randn(HEADS * count, 1, chosen, DIM), torch.randn(HEADS * count, 1, read, DIM)

    def routed(z: Tensor, v: Tensor) -> Tensor:
        sets = neighbours(nearest(z.detach(), centroids), MEMBERS)
        first, last, places = sets.first, sets.last, sets.places
        return gathered_attention(z, z, v, sets.index, sets.read, first=first, last=last, places=places)

    def full(z: Tensor, v: Tensor) -> Tensor:
        z, v = z.transpose(1, 2), v.transpose(1, 2)
        return F.scaled_dot_product_attention(z, z, v, is_causal=True)

    calls = {
        "whole": run(routed, z, v, trained=trained),
        "alone": run(F.scaled_dot_product_attention, q, k, k.clone(), trained=trained),
        "full": run(full, z, v, trained=trained),
    }
    sizes = f"L {length}, {HEADS} heads of {DIM}, {CLUSTERS} clusters, last {MEMBERS}"
    name = f"attention in clusters {kind(trained)}, {sizes}"
    yield from Times(**interleaved(calls, repeats=5)).rows(name, "dense causal scaled_dot_product_attention")


def vcc(length: int, *, trained: bool) -> Iterator[Row]:
    """A layer compressed around important tokens: selection, means and the way back are the choice."""
    torch.manual_seed(0)
    full = build("attention(heads=4) + mlp", VCC_DIM, causal=False).train(trained)
    layers: list[SequenceModule] = list(full.layers)  # type: ignore[arg-type]
    short = Vcc(layers, block=BLOCK, fine=FINE, places=PLACES).train(trained)
    x = torch.randn(1, length, VCC_DIM)
    y = torch.randn(1, short.rows(length), VCC_DIM)
    forms = {"whole": (short, x), "alone": (full, y), "full": (full, x)}
    calls = {name: run(partial(output, layer), given, trained=trained) for name, (layer, given) in forms.items()}
    sizes = f"L {length}, width {VCC_DIM}, blocks of {BLOCK}, {FINE} in full, {PLACES} places"
    yield from Times(**interleaved(calls, repeats=5)).rows(f"vcc layer {kind(trained)}, {sizes}", "the layer in full")


def output(layer: SequenceModule, x: Tensor) -> Tensor:
    """What a layer gives, without its state."""
    return layer(x)[0]


def run(form: Callable[..., Tensor], *tensors: Tensor, trained: bool) -> Callable[[], object]:
    """A function that runs a forward pass, and a backward pass where it is trained."""
    if trained:
        leaves = [t.clone().requires_grad_() for t in tensors]
        return lambda: form(*leaves).sum().backward()
    return torch.no_grad()(partial(form, *tensors))


def kind(trained: bool) -> str:
    """What is timed, in words."""
    return "forward and backward" if trained else "forward"
