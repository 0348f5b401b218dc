"""What went wrong in a run, in words: where a number stopped being finite, and a full disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lengthwise.errors import InputError


class Diverged(InputError):
    """The loss or its gradient is no finite number."""


def finite(value: Any) -> bool:
    """Whether every tensor in a module's output is finite. What isn't a tensor or a tuple is not looked into."""
    if isinstance(value, Tensor):
        return bool(torch.isfinite(share(value)).all())
    return all(finite(item) for item in value) if isinstance(value, tuple) else True


def share(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_not_finite(model: nn.Module, run: Callable[[], Any]) -> str:
    """The innermost module whose output is the first that isn't finite when `run` calls the model, in words."""
    # sharded models gather parameters from all processes in `run`, so that none may return before it
    found = [f"in the parameter {name}" for name, p in model.named_parameters() if not finite(p.detach())]

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            if not found and not finite(output):
                found.append(f"first in {name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "in the cross-entropy; the logits are finite"


def gradients_not_finite(model: nn.Module) -> str:
    """The parameters whose gradient isn't finite, in words."""
    names = [name for name, p in model.named_parameters() if p.grad is not None and not finite(p.grad)]
    return f"in the gradient of {names[0]} and {len(names) - 1} more parameters" if names else "in the gradient's norm"


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that there is no room to write."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno in full:
        return True
    # safetensors and the writer above it give the number of the system's error in words alone
    return isinstance(error, (OSError, SafetensorError)) and any(f"(os error {n})" in str(error) for n in full)


@contextlib.contextmanager
def full_disk_explained(folder: Path, kept: Callable[[], str]) -> Iterator[None]:
    """Turn the error of a full disk into one sentence; `kept` says what is safe."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        raise InputError(f"the disk of {folder} is full; {kept()}") from error
