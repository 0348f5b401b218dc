"""Everything that a training run is at one step, to the disk and back: nothing is left to chance on going on."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise.contract import StateTree, map_state
from lengthwise.errors import InputError
from lengthwise.models.files import read_json, read_tensors, write_json, write_tensors
from lengthwise.models.saving import CONFIG, WEIGHTS, load_weights, own_tensors
from lengthwise.models.states import load_state, save_state
from lengthwise.training.distributed import World, load_shards, save_shards, whole

TRAINER = "trainer.json"


@dataclass
class Progress:
    """How far a run has come.

    step: optimiser steps done. seconds: training time of all attempts. best: lowest bits per byte on held-out data.
    length: the context trained with. tokens: those of the training data, by which changed data are noticed.
    """

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    length: int = 0
    tokens: int = 0


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that the optimiser keeps, by the name of its parameter."""
    kept = dict(optimizer.state)  # its own table would make up an empty entry for a parameter that it lacks
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in kept[parameter].items()
    }


def begin_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the moments that it has before the first step, to be saved and read into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that a model may draw from."""
    states = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(device)
    return states


def save_snapshot(
    folder: Path,
    world: World,
    model: nn.Module,
    description: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    states: StateTree,
    progress: Progress,
    tokenizer: Path | None,
) -> None:
    """Write the run to a folder. Every process calls this with the same folder; trainer.json is written last."""
    tensors = moments(model, optimizer)
    weights = {name: whole(t.detach()) for name, t in own_tensors(model).items()}
    if world.size > 1:
        shares = {f"model.{name}": t.detach() for name, t in own_tensors(model).items()} | tensors
        save_shards(shares, folder / "shards")
        tensors = {}
    write_tensors(folder / f"trainer-{world.rank}.safetensors", tensors | random_states(world.device))
    save_state(map_state(lambda t: t.clone(), states), folder / f"state-{world.rank}.safetensors")
    if world.first:
        write_tensors(folder / WEIGHTS, weights)
        write_json(folder / CONFIG, description)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, folder / "tokenizer.json")
    world.wait()
    if world.first:
        write_json(folder / TRAINER, {"format": 1, "processes": world.size, **vars(progress)})


def load_snapshot(
    folder: Path, world: World, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, StateTree]:
    """Bring model, optimiser and generators to what a snapshot holds; return its progress and carried state."""
    described = read_json(folder / TRAINER)
    if not isinstance(described, dict) or described.get("format") != 1:
        raise InputError(f"{folder / TRAINER} has a format that this version doesn't know; use the one that wrote it")
    if described["processes"] != world.size:
        raise InputError(
            f"{folder} was written by {described['processes']} process(es) and this run has {world.size}; "
            "go on with as many"
        )
    wanted = moments(model, optimizer)
    source = folder / f"trainer-{world.rank}.safetensors"
    tensors, _ = read_tensors(source)
    if world.size > 1:
        load_shards({f"model.{name}": t.detach() for name, t in own_tensors(model).items()} | wanted, folder / "shards")
    else:
        load_weights(model, read_tensors(folder / WEIGHTS)[0], folder / WEIGHTS)
        if wanted.keys() - tensors.keys():
            raise InputError(f"{source} belongs to another model: it lacks {min(wanted.keys() - tensors.keys())!r}")
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and world.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], world.device)
    states, _ = load_state(folder / f"state-{world.rank}.safetensors")
    progress = Progress(**{field.name: described[field.name] for field in dataclasses.fields(Progress)})
    return progress, map_state(lambda t: t.to(world.device), states)
