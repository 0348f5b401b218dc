"""The verbs train and evaluate."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from lengthwise.conversion import load
from lengthwise.errors import InputError
from lengthwise.models import LanguageModel
from lengthwise.options.training import EvaluateOptions, TrainOptions, read_config, to_mapping
from lengthwise.tasks.corpus import read
from lengthwise.training.checkpoint import LAST, find_checkpoint, linked, trained_length
from lengthwise.training.device import autocast, pick_device
from lengthwise.training.distributed import World, join, shard
from lengthwise.training.evaluation import Evaluation, evaluate_windows, summarise
from lengthwise.training.failure import full_disk_explained
from lengthwise.training.journal import Bar
from lengthwise.training.loop import Trainer, check_settings

SETTINGS = "settings.yaml"
FREE = ("config", "out", "resume", "data", "device", "validate_every", "validation_windows", "checkpoint_every")
"""Settings that a resumed run may change: they don't touch what is computed. Data may have moved."""

LENGTH = 1024
"""The context that a checkpoint is evaluated with that doesn't say what it was trained with."""


def train(options: TrainOptions) -> int:
    """Train a model, or go on with a run. 130 when the user stopped it. `options.config` has been read already."""
    world = join(options.device)
    try:
        return train_in(world, settle(options))
    finally:
        world.leave()


def settle(options: TrainOptions) -> TrainOptions:
    """The settings of the run: those given, or on resuming those it began with."""
    file = options.out / SETTINGS
    if options.resume:
        if not file.exists():
            raise InputError(f"there is no run to resume in {str(options.out)!r}; give the --out that it began with")
        return settings_of_resumed(options, read_config(file, TrainOptions))
    if file.exists():
        raise InputError(f"{str(options.out)!r} holds a run; add --resume to go on with it, or choose another --out")
    if not options.layers:
        raise InputError('no model given; name its layers, as --layers "4*(attention + swiglu)"')
    if not options.data:
        raise InputError("no data given; name files, folders or globs with --data")
    return options


def settings_of_resumed(given: TrainOptions, began: TrainOptions) -> TrainOptions:
    """The settings a run began with. What is given beside must be the same, or not touch what is computed."""
    changed: dict[str, Any] = {"out": given.out, "resume": True, "config": None}
    for field in dataclasses.fields(TrainOptions):
        value, before = getattr(given, field.name), getattr(began, field.name)
        if field.name in changed or value in (field.default, before):
            continue
        if field.name not in FREE:
            raise InputError(
                f"the run in {str(given.out)!r} began with {field.name} {before} and can't go on with {value}; "
                "leave it out, or begin a new run with another --out"
            )
        changed[field.name] = value
    return dataclasses.replace(began, **changed)


def write_settings(options: TrainOptions) -> None:
    """Keep the settings in the folder of the run, with paths that hold from any folder."""
    tokenizer = None if options.tokenizer is None else options.tokenizer.absolute()
    kept = dataclasses.replace(
        options, data=tuple(p.absolute() for p in options.data), tokenizer=tokenizer, resume=False, out=Path(".")
    )
    plain = {name: value for name, value in to_mapping(kept).items() if name not in ("out", "resume")}
    options.out.mkdir(parents=True, exist_ok=True)
    partial = options.out / f".{SETTINGS}.partial"
    partial.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(partial, options.out / SETTINGS)


def train_in(world: World, options: TrainOptions) -> int:
    """Train as settled, in a world of one or several processes."""
    console = Console(stderr=True, quiet=not world.first)
    check_settings(options)
    corpus = read(options.data, options.tokenizer)
    for note in corpus.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    data, held_out = corpus.split()
    data.require(options.length)
    validation = None
    if options.validate_every:
        held_out.require(options.length)
        validation = held_out
    torch.manual_seed(options.seed)
    model = LanguageModel(
        corpus.vocab_size, options.dim, options.layers, options.position, options.norm, options.tie
    ).to(world.device)
    if world.size > 1:
        shard(model, model.stack.layers, world)
    description = {"model": "LanguageModel", "config": model.config}
    trainer = Trainer(model, description, data, validation, options, world)
    checkpoint = linked(options.out, LAST)
    if options.resume and checkpoint is not None:
        trainer.go_on(checkpoint)
        console.print(f"going on from step {trainer.progress.step}", markup=False)
    elif world.first:
        with full_disk_explained(options.out, trainer.after_full_disk):
            write_settings(options)
    if not trainer.fit():
        again = f"lengthwise train --out {options.out} --resume"
        console.print(f"stopped after step {trainer.progress.step}; go on with: {again}", markup=False, soft_wrap=True)
        return 130
    console.print(
        f"trained; try: lengthwise generate {options.out} --prompt ...", markup=False, soft_wrap=True, highlight=False
    )
    return 0


def evaluate(options: EvaluateOptions) -> int:
    """Print bits per byte of a checkpoint on data, overall and by position."""
    folder = find_checkpoint(options.checkpoint)
    if options.batch < 1 or options.max_tokens < 1:
        raise InputError(f"batch and max_tokens must be at least 1, got {options.batch} and {options.max_tokens}")
    device = pick_device(options.device)
    model = load(folder).to(device)
    if not isinstance(model, LanguageModel):
        raise InputError(f"{folder} holds a {type(model).__name__}; only a LanguageModel predicts the next token")
    corpus = read(options.data, options.tokenizer or model.tokenizer)
    if corpus.vocab_size > model.vocab_size:
        raise InputError(
            f"the data has a vocabulary of {corpus.vocab_size} and the model one of {model.vocab_size}; "
            "give the --tokenizer that it was trained with"
        )
    if options.held_out:
        corpus = corpus.split()[1]
    length = (trained_length(folder) or LENGTH) if options.length is None else options.length
    corpus.require(length)
    windows = corpus.windows(max(1, options.max_tokens // length), length)
    with Bar(f"reading {len(windows)} contexts of {length}", len(windows), unit="context") as bar:
        nats = evaluate_windows(
            model,
            windows,
            batch=options.batch,
            device=device,
            context=lambda: autocast(device, options.precision),
            on_batch=lambda rows: bar.advance(by=rows),
        )
    result = summarise(nats, corpus.bytes_per_token)
    if options.json:
        print(json.dumps(result.as_json(), indent=2))
    else:
        show(result)
    return 0


def show(result: Evaluation) -> None:
    """The result as a table."""

    def with_error(mean: float, error: float | None) -> str:
        return f"{mean:.4f}" if error is None else f"{mean:.4f} ± {error:.4f}"

    table = Table(title=f"{result.windows} contexts of {result.length} tokens")
    table.add_column("position in the context")
    table.add_column("bits per byte", justify="right")
    for at in result.by_position:
        table.add_row(f"{at.begin} to {at.end - 1}", with_error(at.bits_per_byte, at.standard_error))
    table.add_section()
    table.add_row("all", with_error(result.bits_per_byte, result.standard_error))
    Console().print(table)
