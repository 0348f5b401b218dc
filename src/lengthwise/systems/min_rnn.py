"""minGRU and minLSTM: the depth that gates without context need, and the speed of training as a scan."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.measure import interleaved
from lengthwise.mixers.min_rnn import MinGRU, MinLSTM
from lengthwise.systems.selective_copying import medians
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported

SYSTEM = System(
    key="min-rnn",
    title="Were RNNs All We Needed?",
    arxiv="2410.01201",
    parts=["mixers.min_gru", "mixers.min_lstm", "ops.scan"],
    claim="gates that read the input alone make training one scan, far faster than a GRU, and a few layers solve"
    " selective copying",
    expression="6*(min_gru(expansion=2, kernel=4) + mlp)",
)

SHARES = {(MinGRU, nn.GRU): (33, 22, 17, 13), (MinLSTM, nn.LSTM): (38, 25, 19, 15)}
"""Percent of the parameters of a GRU or LSTM that the paper gives for expansions 1 to 4."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Selective copying with one and with three layers, the time of a training step, and the parameters."""
    found = medians(run, {"3 layers": "3*min_gru(expansion=2)", "1 layer": "min_gru(expansion=2)"})
    seeds = of_seeds(run.seeds)
    three, one = found["3 layers"], found["1 layer"]
    yield at_least(f"selective copying accuracy of 3 layers ({seeds})", three, 0.90, claimed="99.5 % at length 4096")
    yield at_least(
        f"accuracy of 3 layers above that of 1 ({seeds})",
        three - one,
        0.2,
        claimed="99.5 % against 37.0 %",
        note=f"1 layer: {one:.3f}",
    )
    run.progress("timing a training step", 1.0)
    times = training_step_times()
    note = f"minGRU {1e3 * times['log']:.1f} ms in logarithms, {1e3 * times['plain']:.1f} ms in real numbers"
    yield at_least(
        "training step of a GRU written as a loop over that of minGRU, length 2048",
        times["loop"] / times["log"],
        10,
        claimed="175 at length 512 on a T4",
        note=note,
    )
    yield reported("training step of PyTorch's GRU over that of minGRU, length 2048", times["library"] / times["log"])
    yield at_most("largest difference from the published shares of parameters, in percent", share_error(), 0)


def training_step_times(length: int = 2048, batch: int = 4, dim: int = 64, repeats: int = 5) -> dict[str, float]:
    """Median seconds of forward and backward: minGRU in both forms, a GRU as a loop, and PyTorch's GRU."""
    torch.manual_seed(0)
    x = torch.randn(batch, length, dim)
    gru = nn.GRU(dim, dim, batch_first=True)
    forwards = {
        "log": (log := MinGRU(dim), lambda: log(x)[0]),
        "plain": (plain := MinGRU(dim, form="plain"), lambda: plain(x)[0]),
        "loop": (gru, lambda: gru_as_a_loop(gru, x)),
        "library": (gru, lambda: gru(x)[0]),
    }

    def step(name: str) -> None:
        module, forward = forwards[name]
        torch.autograd.grad(forward().sum(), list(module.parameters()))

    return interleaved({name: lambda name=name: step(name) for name in forwards}, repeats=repeats)  # type: ignore[misc]


def gru_as_a_loop(gru: nn.GRU, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length width"]:
    """The formulas of `torch.nn.GRU`, one token at a time; what doesn't read h is computed for all tokens at once."""
    to_x, to_h, bias_x, bias_h = gru.all_weights[0]
    h = x.new_zeros(x.shape[0], gru.hidden_size)
    hs = []
    for from_x in F.linear(x, to_x, bias_x).unbind(1):
        r_x, z_x, n_x = from_x.chunk(3, -1)
        r_h, z_h, n_h = F.linear(h, to_h, bias_h).chunk(3, -1)
        z = torch.sigmoid(z_x + z_h)
        candidate = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        h = (1 - z) * candidate + z * h
        hs.append(h)
    return torch.stack(hs, 1)


def share_error(dim: int = 120) -> float:
    """The largest difference, in percent, of the recurrence's share of parameters from the published one."""
    errors = []
    for (kind, baseline), percents in SHARES.items():
        for expansion, percent in enumerate(percents, start=1):
            mixer = kind(dim, expansion=expansion, bias=False)
            ours = mixer.gate.weight.numel() + mixer.candidate.weight.numel()
            theirs = sum(p.numel() for p in baseline(dim, expansion * dim, bias=False).parameters())
            errors.append(abs(int(100 * ours / theirs + 0.5) - percent))
    return float(max(errors))
