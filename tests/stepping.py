"""Sequences read in pieces, each going on from the state that the one before it left."""

import torch


def in_pieces(module, x, cuts, state=None, layout=None):
    """The outputs of [batch, length, …], cut before each token of `cuts`, put together, and the last state."""
    outputs = []
    for begin, end in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        y, state = module(x[:, begin:end], state, None if layout is None else layout.slice(begin, end))
        outputs.append(y)
    return torch.cat(outputs, 1), state


def token_by_token(module, x, state=None):
    """The outputs of all tokens, read one at a time, put together, and the last state."""
    return in_pieces(module, x, range(1, x.shape[1]), state)
