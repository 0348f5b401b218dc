"""S5 as the memory of an agent: rollouts of many episodes in one scan that begins anew where an episode does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lengthwise.contract import Layout
from lengthwise.measure import interleaved
from lengthwise.mixers.s5 import S5, S5State
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds

SYSTEM = System(
    key="s5-reinforcement",
    title="Structured State Space Models for In-Context Reinforcement Learning",
    arxiv="2303.03982",
    parts=["mixers.s5", "ops.scan"],
    claim="a scan with resets learns from rollouts of many episodes at once, exactly as step by step and much faster"
    " than a recurrent cell; measured here are exactness and time, not yet the learning of an agent",
    expression="4*s5",
)

DIM, STATE_DIM = 32, 32
ENVIRONMENTS, ROLLOUT = 8, 256
"""Rows of a minibatch of rollouts, and the steps of each."""

EPISODE = 32
"""Steps of an episode on average."""

LONG = 2048
"""The rollout that is timed."""

Rollout = Float[Tensor, "batch length dim"]
Begins = Bool[Tensor, "batch length"]
"""True at the first observation of an episode."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Rollouts with random resets: one scan against a loop over steps, cut anywhere, and without resets; the time that
    learning from a long rollout takes, forward and backward, against a GRU cell stepped in a loop.

    The memory chain with an actor and a critic, the second half of the claim, isn't part of it yet.
    """
    found = []
    for done, seed in enumerate(run.seeds):
        run.progress(f"rollouts with resets, seed {seed}", 0.5 * done / len(run.seeds))
        found.append(differences(seed, ROLLOUT))
    largest = {name: max(each[name] for each in found) for name in found[0]}
    over = of_seeds(run.seeds, "largest")
    yield at_most(f"difference of the scan from a loop that zeroes the state ({over})", largest["loop"], 1e-5)
    yield at_most(f"difference of a rollout cut at any step from the whole ({over})", largest["cuts"], 1e-5)
    smallest = min(each["masked"] for each in found)
    yield at_least(f"difference where the input is masked at resets and the state kept ({over})", smallest, 1e-2)
    run.progress("timing a long rollout", 0.5)
    times = learning_times(LONG)
    yield at_most(
        f"time of learning from {LONG} steps over that of a GRU cell in a loop",
        times["s5"] / times["gru"],
        0.5,
        claimed="up to 6 times as fast on POPGym",
        note=f"{1e3 * times['s5']:.1f} ms for {ENVIRONMENTS} rollouts, width {DIM}",
    )


def rollouts(length: int, seed: int) -> tuple[Rollout, Begins]:
    """Random observations, and where episodes begin: each step with a probability of one in `EPISODE`."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(ENVIRONMENTS, length, DIM, generator=generator)
    return observations, torch.rand(ENVIRONMENTS, length, generator=generator) < 1 / EPISODE


@torch.no_grad()
def differences(seed: int, length: int) -> dict[str, float]:
    """The largest differences, over outputs and states and relative to the largest number, of the whole rollout in one
    scan, begun from a state, from

    loop: step by step, the state zeroed before an episode begins.
    cuts: the rollout in two pieces, cut at every step in turn.
    masked: no reset of the state, and the first input of an episode zeroed in its place.
    """
    torch.manual_seed(seed)
    layer = S5(DIM, state_dim=STATE_DIM)
    (u, begins), (earlier, _) = rollouts(length, seed), rollouts(EPISODE, seed + 1000)
    _, state = layer(earlier)
    whole = layer(u, state, Layout.begun(begins))
    cuts = [in_two(layer, u, state, Layout.begun(begins), cut) for cut in range(length + 1)]
    return {
        "loop": difference(step_by_step(layer, u, state, begins), whole),
        "cuts": max(difference(cut, whole) for cut in cuts),
        "masked": difference(layer(u.masked_fill(begins[..., None], 0), state), whole),
    }


Result = tuple[Rollout, S5State]


def step_by_step(layer: S5, u: Rollout, state: S5State, begins: Begins) -> Result:
    """The layer as an agent runs it: one observation after the other, from zero where an episode begins."""
    ys = []
    for u_t, begin in zip(u.split(1, 1), begins.unbind(1), strict=True):
        y, state = layer(u_t, S5State(state.s.masked_fill(begin[:, None, None], 0)))
        ys.append(y)
    return torch.cat(ys, 1), state


def in_two(layer: S5, u: Rollout, state: S5State, layout: Layout, cut: int) -> Result:
    """The layer on what is before the cut and then on what is after it."""
    first, state = layer(u[:, :cut], state, layout.slice(0, cut))
    second, state = layer(u[:, cut:], state, layout.slice(cut))
    return torch.cat([first, second], 1), state


def difference(got: Result, expected: Result) -> float:
    """The largest difference of outputs or states, over the largest number expected."""
    pairs = ((got[0], expected[0]), (got[1].s, expected[1].s))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


class GRUMemory(nn.Module):
    """A GRU cell that is stepped in a loop, its hidden state zeroed where an episode begins."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(dim, dim)

    def forward(self, u: Rollout, begins: Begins) -> Rollout:
        """The hidden state after every observation."""
        h, hs = u.new_zeros(u.shape[0], u.shape[2]), []
        for u_t, begin in zip(u.unbind(1), begins[..., None].unbind(1), strict=True):
            h = self.cell(u_t, h.masked_fill(begin, 0))
            hs.append(h)
        return torch.stack(hs, 1)


def learning_times(length: int, repeats: int = 5) -> dict[str, float]:
    """Median seconds of forward and backward over a long rollout: the layer and the GRU cell."""
    torch.manual_seed(0)
    layer, cell = S5(DIM, state_dim=STATE_DIM), GRUMemory(DIM)
    u, begins = rollouts(length, seed=0)
    grad = torch.randn(u.shape)

    def learn(module: nn.Module, y: Tensor) -> None:
        torch.autograd.grad(y, list(module.parameters()), grad)

    return interleaved(
        {
            "s5": lambda: learn(layer, layer(u, None, Layout.begun(begins))[0]),
            "gru": lambda: learn(cell, cell(u, begins)),
        },
        repeats=repeats,
    )
