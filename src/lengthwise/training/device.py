"""Where a model runs, and in which arithmetic."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from lengthwise.errors import InputError
from lengthwise.options.training import Precision


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the graphics card where there is one, else the processor."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} can't be used here: {str(error).splitlines()[0]}") from error
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """The context in which a model computes at a precision. Parameters and states stay as they are."""
    if precision == "bfloat16" or (precision == "auto" and has_bfloat16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
