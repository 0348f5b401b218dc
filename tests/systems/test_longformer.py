from __future__ import annotations

import torch

from lengthwise.mixers.longformer import Longformer
from lengthwise.systems import longformer
from lengthwise.systems.cue import accuracy, build
from lengthwise.tasks.cue import Cue

TINY = Cue(length=24, noise=4, cues=2, answered="first")


def test_every_arm_trains():
    for layers in longformer.ARMS.values():
        assert 0 <= accuracy(layers, TINY, 10, steps=2, batch=2) <= 1


def test_projections_of_global_tokens_begin_as_copies():
    torch.manual_seed(0)
    parts = [part for part in build(longformer.ARMS["window alone"], TINY).modules() if isinstance(part, Longformer)]
    assert len(parts) == 2
    for part in parts:
        assert torch.equal(part.q_proj.weight, part.global_q_proj.weight)
        assert part.q_proj.weight.std() > 0.1


def test_the_first_token_of_the_window_alone_sees_sixteen_places():
    model = build(longformer.ARMS["window alone"], longformer.TASK)
    hidden = []
    model.encoder.embedding.register_forward_hook(lambda _m, _i, out: hidden.append(out.requires_grad_()))
    tokens = longformer.TASK.batch(1).tokens
    model(tokens)[0][0, 0].sum().backward(inputs=hidden)
    assert hidden[0].grad[0].abs().sum(-1).nonzero().max() == 16


def test_times_are_measured():
    assert all(seconds > 0 for seconds in longformer.forward_times(256, 1).values())
