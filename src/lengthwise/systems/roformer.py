"""RoFormer: rotary positions learn faster than learned absolute ones, in softmax and in linear attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.rope import RoPE
from lengthwise.systems.experiments import DECODER, OnStep, nll, train_bytes, validation_windows, variants
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported

SYSTEM = System(
    key="roformer",
    title="RoFormer: Enhanced Transformer with Rotary Position Embedding",
    arxiv="2104.09864",
    parts=["positions.rope", "mixers.attention", "mixers.linear_attention"],
    claim="rotary positions reach a lower loss in equal steps than learned absolute positions",
    expression="12*(attention(position=rope) + mlp)",
)

STEPS = 450


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """The byte language model of `lengthwise.systems.experiments` with each position encoding, at length 64."""
    seeds = run.seeds[:2]
    rotary: list[LanguageModel] = []

    def job(position: str = "none", layers: str = DECODER) -> Callable[[int, OnStep], float]:
        def measure(seed: int, on_step: OnStep) -> float:
            model = train_bytes(layers, position, seed=seed, steps=STEPS, on_step=on_step)
            if position == "rope":
                rotary.append(model)
            return nll(model, 64)

        return measure

    jobs = {
        "rope": job("rope"),
        "learned": job("learned(length=64)"),
        "none": job(),
        "linear attention with rope": job(layers="4*(linear_attention(heads=4, position=rope) + mlp)"),
        "linear attention without": job(layers="4*(linear_attention(heads=4) + mlp)"),
    }
    found = variants(run, jobs, seeds, STEPS)
    for name, value in found.items():
        yield reported(f"nats per byte at length 64, {name}", value)
    over = f"mean of {len(seeds)} seeds"
    yield at_least(
        f"nats per byte saved by rope against learned positions ({over})",
        found["learned"] - found["rope"],
        0.02,
        claimed="MLM loss falls faster than BERT's at equal steps",
    )
    yield at_least(
        f"nats per byte saved by rope in linear attention ({over})",
        found["linear attention without"] - found["linear attention with rope"],
        0.02,
        claimed="Performer with rope falls faster and lower on Enwik8",
    )
    shifts = (1, 100, 10_000)
    yield at_most(
        "largest change of a trained layer's logits when all positions move on",
        max(shift_error(model, shift) for model in rotary for shift in shifts),
        1e-4,
        claimed="logits depend on differences of positions alone",
    )
    for length in (128, 256, 512):
        mean = sum(nll(model, length) for model in rotary) / len(rotary)
        yield reported(f"nats per byte at length {length}, rope trained at 64", mean)


@torch.no_grad()
def shift_error(model: LanguageModel, shift: int) -> float:
    """The largest change of q·k / sqrt(D), over a model's layers on held-out text, when positions grow by `shift`."""
    rope = next(module for module in model.modules() if isinstance(module, RoPE))
    seen = queries_and_keys(model, rope, validation_windows(64, windows=4)[:, :-1])
    worst = 0.0
    for q, k in seen:
        places = torch.arange(q.shape[1])
        at_home, moved = (
            torch.einsum("bihd,bjhd->bhij", *rope.rotate(q, k, p, p)) / q.shape[-1] ** 0.5
            for p in (places, places + shift)
        )
        worst = max(worst, float((at_home - moved).abs().max()))
    return worst


def queries_and_keys(model: LanguageModel, rope: RoPE, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each layer of the model gave to `rope` to turn."""
    seen: list[tuple[Tensor, Tensor]] = []

    def listen(q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((q, k))
        return RoPE.rotate(rope, q, k, q_positions, k_positions)

    rope.rotate = listen  # type: ignore[method-assign]
    try:
        model(tokens)
    finally:
        del rope.rotate
    return seen
