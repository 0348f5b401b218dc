"""Benchmarks of what reads sequences in segments: memory of training and cost of a token, over their number."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from lengthwise.benches.row import Row
from lengthwise.contract import StateTree
from lengthwise.measure import interleaved, peak_bytes
from lengthwise.models.language_model import LanguageModel
from lengthwise.training.fit import Loss, next_token_loss
from lengthwise.training.truncated import truncated

SEGMENT, BACKPROP, DIM, VOCABULARY = 128, 2, 128, 256
FEW, MANY = 4, 64
"""Segments of the sequences that are compared."""

LAYERS = {
    "recurrent_memory": f"recurrent_memory(2*(attention + mlp), tokens=8, segment={SEGMENT}, backprop={BACKPROP})",
    "cache_previous": f"cache_previous(2*(attention + mlp), segment={SEGMENT})",
    "block_recurrent": f"attention(window={SEGMENT}) + mlp"
    f" + block_recurrent(block={SEGMENT}, states=64, backprop={BACKPROP})",
}


def segments() -> Iterator[Row]:
    """Each model: a training step on few and on many segments, in pieces and whole, and a token after as many."""
    for name, layers in LAYERS.items():
        torch.manual_seed(0)
        model = LanguageModel(VOCABULARY, DIM, layers)
        yield training(name, model)
        yield decoding(name, model)


def training(name: str, model: LanguageModel) -> Row:
    """Time and memory of a step on many segments over those on few; whole rows beside rows in pieces."""
    rows = {count: torch.randint(VOCABULARY, (1, count * SEGMENT + 1)) for count in (FEW, MANY)}
    losses = {"in pieces": truncated(tokens=BACKPROP * SEGMENT), "whole": next_token_loss}
    work = {
        f"{kind} {count}": partial(step, model, loss, row)
        for kind, loss in losses.items()
        for count, row in rows.items()
    }
    work[f"in pieces {FEW}"]()  # what the gradients of the parameters take stays
    memory = {key: peak_bytes(call) for key, call in work.items()}
    times = interleaved(work, repeats=5)
    longer = MANY / FEW
    grown = {kind: memory[f"{kind} {MANY}"] / memory[f"{kind} {FEW}"] for kind in losses}
    per_token = times[f"in pieces {MANY}"] / times[f"in pieces {FEW}"] / longer
    return Row(
        f"{name} training step, {MANY} segments of {SEGMENT}, in pieces of {BACKPROP}",
        times[f"in pieces {MANY}"],
        {"the whole row": times[f"whole {MANY}"] / times[f"in pieces {MANY}"]},
        note=f"{MANY} segments over {FEW}: time of a token {per_token:.2f}, memory {grown['in pieces']:.2f}"
        f" ({grown['whole']:.1f} for the whole row)",
    )


def step(model: LanguageModel, loss: Loss, row: torch.Tensor) -> None:
    """Forward and backward."""
    model.zero_grad(set_to_none=False)
    loss(model, row).backward()


@torch.no_grad()
def decoding(name: str, model: LanguageModel) -> Row:
    """Time of a token after many segments over that after few, the mean over a segment."""
    tokens = torch.randint(VOCABULARY, (1, MANY * SEGMENT))
    work = {
        str(count): partial(decode, model, tokens[:, :SEGMENT], model(tokens[:, : count * SEGMENT])[1])
        for count in (FEW, MANY)
    }
    times = interleaved(work, repeats=5)
    many = times[str(MANY)] / SEGMENT
    return Row(
        f"{name} one token after {MANY} segments of {SEGMENT}",
        many,
        note=f"over one after {FEW}: {times[str(MANY)] / times[str(FEW)]:.2f}",
    )


def decode(model: LanguageModel, tokens: torch.Tensor, state: StateTree) -> None:
    """Tokens one at a time, from a state on."""
    with torch.no_grad():
        for token in tokens.split(1, 1):
            _, state = model(token, state)
