"""The training loop: steps, validation, checkpoints, and going on where a run stopped, bit for bit."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise.contract import StateTree, map_state
from lengthwise.errors import InputError
from lengthwise.options.training import TrainOptions, to_mapping
from lengthwise.training.auxiliary import auxiliary_loss
from lengthwise.training.batches import Data, Rows, check_division, rows_of_steps
from lengthwise.training.checkpoint import (
    BEST,
    LAST,
    linked,
    point_to,
    remove_unlinked,
    whole_or_nothing,
    writing_place,
)
from lengthwise.training.device import autocast
from lengthwise.training.distributed import World, whole
from lengthwise.training.evaluation import evaluate_windows, mean_and_error
from lengthwise.training.failure import Diverged, first_not_finite, full_disk_explained, gradients_not_finite
from lengthwise.training.interrupt import StopRequest, stop_requests
from lengthwise.training.journal import Bar, Journal
from lengthwise.training.optimizer import adamw, learning_rate_factor, set_learning_rate
from lengthwise.training.snapshot import Progress, begin_moments, load_snapshot, save_snapshot


class Trainer:
    """A model on its way through `options.steps` steps of AdamW on next-token prediction.

    The loss of a step is the mean cross-entropy over all tokens that its rows predict, over all processes and
    accumulated parts. With `carry_state` the state after a step, cut off from its graph, is where the next one begins.

    model: sharded already where the world has several processes. description: what `config.json` says of it.
    validation: held-out data, or None. The run's folder is `options.out`.
    """

    def __init__(
        self,
        model: nn.Module,
        description: dict[str, Any],
        train: Data,
        validation: Data | None,
        options: TrainOptions,
        world: World,
    ):
        check_division(options.batch, world.size, options.accumulate)
        check_settings(options)
        if options.carry_state and getattr(model, "growth", "constant") == "linear":
            raise InputError(
                "the state of this model grows with every token, so it can't be carried through a whole run; "
                "use attention(window=512) or another mixer with a bounded state, or leave out --carry-state"
            )
        self.model, self.description, self.train, self.validation = model, description, train, validation
        self.options, self.world, self.run = options, world, options.out
        self.optimizer = adamw(
            model,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            betas=(options.beta1, options.beta2),
        )
        begin_moments(self.optimizer)
        self.progress = Progress(length=options.length, tokens=len(train))
        self.states: tuple[StateTree, ...] = (None,) * options.accumulate
        self.began = 0

    def go_on(self, checkpoint: Path) -> None:
        """Become what the run was when it wrote a checkpoint."""
        progress, states = load_snapshot(checkpoint, self.world, self.model, self.optimizer)
        if progress.tokens != len(self.train):
            raise InputError(
                f"the run began with {progress.tokens} tokens to train on and the data now has {len(self.train)}; "
                "give the data as they were, or begin a new run with another --out"
            )
        self.progress, self.states = progress, states

    def fit(self) -> bool:
        """Train to the last step. False if the user stopped it; a checkpoint is written then."""
        self.model.train()
        self.began = self.progress.step
        title = f"training {self.options.out.name}"
        journal = Journal(self.run, self.began) if self.world.first else None
        bar = Bar(title, self.options.steps, self.began, quiet=not self.world.first)
        try:
            with stop_requests() as request, full_disk_explained(self.run, self.after_full_disk), bar:
                return self._steps(request, journal, bar)
        finally:
            if journal is not None:
                with full_disk_explained(self.run, self.after_full_disk):
                    journal.close()

    def kept(self) -> str:
        """What is safe on the disk, in words."""
        last = linked(self.run, LAST)
        return f"the last good checkpoint is {self.run / LAST} ({last.name})" if last else "there is no checkpoint yet"

    def after_full_disk(self) -> str:
        """What is safe, and what to do."""
        return f"{self.kept()}; free some space and go on with --resume"

    def _steps(self, request: StopRequest, journal: Journal | None, bar: Bar) -> bool:
        options, progress = self.options, self.progress
        begin, earlier = time.perf_counter(), progress.seconds
        rows = rows_of_steps(self.train, to_mapping(options), progress.step)
        for batch in itertools.islice(rows, max(0, options.steps - progress.step)):
            numbers = self.step(batch)
            progress.step += 1
            progress.seconds = earlier + time.perf_counter() - begin
            rate = options.batch * options.length * (progress.step - self.began) / (progress.seconds - earlier)
            if journal is not None:
                journal.write("train", progress.step, **numbers, seconds=progress.seconds)
            bar.advance(f"loss {numbers['loss']:.4f}  {rate:,.0f} tokens/s")
            stop = self.world.any(request.made)
            last = stop or progress.step == options.steps
            improved = self.validate(journal, bar) if due(options.validate_every, progress.step, last) else False
            if due(options.checkpoint_every, progress.step, last or improved):
                self.save(improved)
            if stop and progress.step < options.steps:
                return False
        return True

    def step(self, rows: Rows) -> dict[str, float]:
        """One optimiser step on rows that all processes share. Raises Diverged before anything is changed by a loss
        or gradient that isn't finite."""
        options, world = self.options, self.world
        mine = rows.divide(world.size)[world.rank]
        count = max(rows.count, 1)  # rows of documents of one token each have nothing to predict
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        self.optimizer.zero_grad(set_to_none=True)
        carried = []
        for part, state in zip(mine.divide(options.accumulate), self.states, strict=True):
            part = part.to(world.device)
            with autocast(world.device, options.precision):
                loss, after = part.loss(self.model, state)
            # sharded gradients are averaged over the processes, and the loss is a mean over the tokens of all
            auxiliary = auxiliary_loss(self.model).to(loss.device) / options.accumulate
            (loss * (world.size / count) + auxiliary).backward()
            total += loss.detach()
            carried.append(map_state(Tensor.detach, after) if options.carry_state else None)
        number = world.sum(total).item() / count
        if not math.isfinite(number):
            raise self._diverged(f"the loss became {number}", lambda: first_not_finite(self.model, self._again(mine)))
        norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)).item()
        if not math.isfinite(norm):
            raise self._diverged("the gradient is not finite", lambda: gradients_not_finite(self.model))
        rate = options.learning_rate * learning_rate_factor(
            self.progress.step, steps=options.steps, warmup=options.warmup, final=options.final
        )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.states = tuple(carried)
        return {"loss": number, "learning_rate": rate, "gradient_norm": norm}

    def _again(self, mine: Rows) -> Callable[[], None]:
        def run() -> None:
            for part, state in zip(mine.divide(self.options.accumulate), self.states, strict=True):
                part.to(self.world.device).loss(self.model, state)

        return run

    def _diverged(self, what: str, where: Callable[[], str]) -> Diverged:
        return Diverged(
            f"{what} at step {self.progress.step + 1}, {where()}; {self.kept()}; "
            "try a lower --learning-rate or a longer --warmup"
        )

    def validate(self, journal: Journal | None, bar: Bar) -> bool:
        """Measure bits per byte on held-out data; True if it is the best so far."""
        if self.validation is None:
            return False
        options, world = self.options, self.world
        windows = self.validation.windows(options.validation_windows, options.length)
        # every process makes the same number of calls, since each gathers parameters from all; what is read twice
        # falls on the same place of the sum
        each = -(-len(windows) // world.size)
        mine = torch.arange(world.rank * each, (world.rank + 1) * each).clamp(max=len(windows) - 1)
        size = max(1, options.batch // (world.size * options.accumulate))
        nats = evaluate_windows(
            self.model,
            windows[mine],
            batch=size,
            device=world.device,
            context=lambda: autocast(world.device, options.precision),
        )
        means = torch.zeros(len(windows), dtype=torch.float64, device=world.device)
        owned = torch.arange(len(mine)) + world.rank * each < len(windows)
        means[mine[owned].to(world.device)] = nats.double().mean(dim=1)[owned].to(world.device)
        bits = world.sum(means) / math.log(2) / self.validation.bytes_per_token
        mean, error = mean_and_error(bits)
        if journal is not None:
            journal.write("validation", self.progress.step, bits_per_byte=mean, standard_error=error)
        spread = "" if error is None else f" ± {error:.4f}"
        bar.say(f"step {self.progress.step}: {mean:.4f}{spread} bits per byte on held-out data")
        improved = self.progress.best is None or mean < self.progress.best
        self.progress.best = mean if improved else self.progress.best
        return improved

    def save(self, best: bool) -> None:
        """Write a checkpoint, make it the last one (and the best), and remove those that are neither."""
        step, tokenizer = self.progress.step, self.options.tokenizer
        arguments = (self.world, self.model, self.description, self.optimizer, self.states, self.progress, tokenizer)
        if self.world.first:
            with whole_or_nothing(self.run, step) as folder:
                self.world.wait()
                save_snapshot(folder, *arguments)
            point_to(self.run, LAST, step)
            if best:
                point_to(self.run, BEST, step)
            remove_unlinked(self.run)
        else:
            self.world.wait()
            save_snapshot(writing_place(self.run, step), *arguments)
        self.world.wait()


def due(every: int, step: int, last: bool) -> bool:
    """Whether what happens every `every` steps, and at the last one, happens now. 0 is at the last one alone."""
    return last or (every > 0 and step % every == 0)


def check_settings(options: TrainOptions) -> None:
    """Raise InputError for sizes that no training can have."""
    for name in ("steps", "length", "dim", "validation_windows"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(options, name)}")
    for name in ("warmup", "validate_every", "checkpoint_every", "weight_decay"):
        if getattr(options, name) < 0:
            raise InputError(f"{name} must not be negative, got {getattr(options, name)}")
    for name in ("learning_rate", "clip"):
        if not getattr(options, name) > 0:
            raise InputError(f"{name} must be positive, got {getattr(options, name)}")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(options, name) < 1:
            raise InputError(f"{name} must be at least 0 and below 1, got {getattr(options, name)}")
    if options.carry_state and options.packing != "none":
        raise InputError(
            f"carry_state reads the files as long streams, and packing {options.packing} as rows of documents; "
            "choose one of them"
        )
