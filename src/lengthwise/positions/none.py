"""No position encoding."""

from __future__ import annotations

from lengthwise.positions.position import Position


class NoPosition(Position):
    """Nothing is said about order: no parameter, no buffer, no operation.

    A causal model still learns where a token is, because a token that averages over i predecessors can tell 1/(i+1)
    from what the first token wrote. A model that isn't causal sees a bag of tokens.

    Haviv et al. 2022, arXiv 2203.16634.
    """
