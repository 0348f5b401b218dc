"""What wraps other parts in an expression: each combinator builds its module from the leaf that names it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from lengthwise.contract import SequenceModule
from lengthwise.models.builder import Builder
from lengthwise.models.cache_previous import CachePrevious
from lengthwise.models.expression import Expression, Leaf, Sum
from lengthwise.models.perspectives import Perspectives
from lengthwise.models.recompute import Recompute
from lengthwise.models.recurrent_memory import RecurrentMemory
from lengthwise.models.stack import Bidirectional, Chain, PostNorm, Residual, Stack, TwoHop, build_norm
from lengthwise.models.vcc import Vcc


def bidirectional(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`bidirectional(mixer)`: a causal mixer and a twin with weights of its own that reads backwards, added."""
    if len(leaf.args) != 1 or not isinstance(leaf.args[0], Leaf) or leaf.kwargs:
        raise builder.error(leaf, f"bidirectional takes one mixer, as bidirectional(mamba), got {leaf}")
    ahead, back = replace(builder, causal=True), replace(builder, causal=True, built=Counter(builder.built))
    return Bidirectional(ahead.part(leaf.args[0]), back.part(leaf.args[0]))


def two_hop(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`two_hop(mixer + channels)`: the second reads the sum with the first, and adds to what the first was given."""
    parts = builder.branches(leaf.args[0]) if len(leaf.args) == 1 and not leaf.kwargs else []
    if len(parts) != 2 or not (isinstance(parts[0], Residual) and isinstance(parts[1], Residual)):
        raise builder.error(leaf, f"two_hop takes two parts in a row, as two_hop(megalodon + swiglu), got {leaf}")
    return TwoHop(parts[0], parts[1])


def chain(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`chain(rwkv + integrate_and_fire)`: parts one after the other on one residual branch."""
    terms = leaf.args[0].terms if len(leaf.args) == 1 and isinstance(leaf.args[0], Sum) else ()
    if not terms or leaf.kwargs or not all(isinstance(term, Leaf) for term in terms):
        raise builder.error(leaf, f"chain takes parts in a row, as chain(rwkv + integrate_and_fire), got {leaf}")
    return Chain([builder.part(term) for term in terms if isinstance(term, Leaf)])


def perspectives(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`perspectives(3*(rwkv + rwkv_channels), views=2)`: views of the sequence through shared weights, then the model's
    norm, then their blend."""
    branches = layers_of(builder, leaf, "perspectives(rwkv + rwkv_channels)")
    return wrapped(builder, leaf, partial(Perspectives, branches, build_norm(builder.norm, builder.dim), builder.dim))


def post_norm(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`post_norm(12*(attention + mlp))`: parts whose residual branches are normed after they are added."""
    branches = layers_of(builder, leaf, "post_norm(attention + mlp)")
    if leaf.kwargs or not all(type(branch) is Residual for branch in branches):
        raise builder.error(leaf, f"post_norm takes parts alone, as post_norm(attention + mlp), got {leaf}")
    parts = [branch.part for branch in branches if isinstance(branch, Residual)]
    return Stack([PostNorm(part, build_norm(builder.norm, builder.dim)) for part in parts])


def recompute(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`recompute(12*(attention + mlp))`: layers whose activations are computed again in the backward pass."""
    return wrapped(builder, leaf, partial(Recompute, layers_of(builder, leaf, "recompute(2*(attention + mlp))")))


def recurrent_memory(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`recurrent_memory(12*(attention + mlp), tokens=8, segment=512)`: memory that is read before each segment and
    written behind it, then the model's norm."""
    inside = builder
    if "position" in dict(leaf.kwargs):
        position = builder.value("position", dict(leaf.kwargs)["position"])
        inside = builder if position is None or position.has("embed") else replace(builder, position=position)
    branches = layers_of(inside, leaf, "recurrent_memory(2*(attention + mlp), tokens=8, segment=512)")
    norm = build_norm(builder.norm, builder.dim)
    return wrapped(builder, leaf, partial(RecurrentMemory, branches, norm, builder.dim))


def cache_previous(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`cache_previous(12*(attention + mlp), segment=512, segments=1)`: keys and values of previous segments."""
    branches = layers_of(builder, leaf, "cache_previous(2*(attention + mlp), segment=512)")
    return wrapped(builder, leaf, partial(CachePrevious, branches))


def vcc(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`vcc(8*(attention + mlp), block=16, fine=90, places=16)`: marked tokens in full, the others mostly as means of
    blocks."""
    return wrapped(builder, leaf, partial(Vcc, layers_of(builder, leaf, "vcc(2*(attention + mlp), block=16, fine=8)")))


def layers_of(builder: Builder, leaf: Leaf, example: str) -> list[SequenceModule]:
    """The layers that a combinator is given as its one argument without a name."""
    if len(leaf.args) != 1 or not isinstance(leaf.args[0], Expression):
        raise builder.error(leaf, f"{leaf.name} takes layers, as {example}, got {leaf}")
    return builder.branches(leaf.args[0])


def wrapped(builder: Builder, leaf: Leaf, constructor: Callable[..., SequenceModule]) -> SequenceModule:
    """What a combinator makes of its layers, which `constructor` holds, by the leaf's other arguments."""
    return builder.call(replace(leaf, args=()), constructor, {})


COMBINATORS: dict[str, Callable[[Builder, Leaf], SequenceModule]] = {
    "bidirectional": bidirectional,
    "cache_previous": cache_previous,
    "chain": chain,
    "perspectives": perspectives,
    "post_norm": post_norm,
    "recompute": recompute,
    "recurrent_memory": recurrent_memory,
    "two_hop": two_hop,
    "vcc": vcc,
}
"""What wraps other parts, by the names that expressions use."""
