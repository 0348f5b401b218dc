"""One training run over several processes: data-parallel with fully sharded parameters (FSDP2).

Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277. `torchrun` starts the processes; each owns a share of every parameter
and of its moments, gathers a layer's parameters while it computes with it, and reads its own rows of every batch.
Sharded checkpoints are PyTorch's distributed checkpoints in safetensors files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.training.device import pick_device


@dataclass(frozen=True)
class World:
    """The processes of a run, and which one this is."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the group of processes."""
        if self.size > 1:
            dist.destroy_process_group()


def join(device: str) -> World:
    """The world that torchrun's environment describes, joined; this process alone without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(pick_device(device))
    place = pick_device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(place, dist.get_rank(), dist.get_world_size())


def shard(model: nn.Module, layers: nn.ModuleList, world: World) -> None:
    """Shard every layer on its own, and what remains together with the model.

    A layer that shares a parameter with another stays with the model: a parameter has one owner.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # no part of a model changes another's output in place, which is what this is about
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(world.device.type, (world.size,))
    owners: dict[int, int] = {}
    for layer in layers:
        for parameter in layer.parameters():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for layer in layers:
        if all(owners[id(p)] == 1 for p in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    # by default the model's own parameters stay gathered after a validation, and a checkpoint would miss their moments
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def save_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write each process's shares of the tensors to safetensors files of its own in the folder."""
    from torch.distributed import checkpoint

    writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    checkpoint.save(dict(tensors), storage_writer=writer)


def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read shares that `save_shards` wrote into tensors of the same names, however many processes wrote them."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; the checkpoint was not written by several processes")
    try:
        checkpoint.load(dict(tensors), storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)))
    except (CheckpointException, RuntimeError) as error:
        raise InputError(f"{folder} is incomplete or belongs to another model ({error})") from error


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together again. Every process must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
