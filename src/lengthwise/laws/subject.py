"""What the laws are tried on: a module that can be had in any precision, and inputs for it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, StateTree
from lengthwise.errors import InputError
from lengthwise.laws.law import Breach, Case

Target = nn.Module | type[nn.Module] | Callable[..., nn.Module]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""How far two orders of the same sums may be apart, relative to the largest output: rounding, with room for sums over
a few hundred terms."""


KERNEL_CHUNK = 32
"""Tokens from one state that the fused kernels of scans keep for their backward to the next."""


class Subject:
    """A module under examination.

    target: a module, or a class or function that makes one: called with `dim`, or with nothing where it takes none.
    dim: width of the input; a module that says its own (`dim`, or `vocab_size` for one that reads tokens) keeps it.

    Exact laws are tried in float64, or in what the module says as `law_dtype`. A module with `law_stirs = False` is
    tried with the parameters that it is made with.

    goes_on: whether laws try to go on from a state as well; not where going on is known to fail, so that one mistake is
        one broken law.
    """

    def __init__(self, target: Target, dim: int | None = None, seed: int = 0):
        self.target, self.seed = target, seed
        self.makes = not isinstance(target, nn.Module)
        self.takes_dim = self.makes and _takes_dim(target)
        wanted = 16 if dim is None else dim
        self._first = self.make(wanted)
        own = getattr(self._first, "dim", None)
        self.dim: int = own if isinstance(own, int) and not self.takes_dim else wanted
        vocabulary = getattr(self._first, "vocab_size", None)
        self.vocabulary: int | None = vocabulary if isinstance(vocabulary, int) else None
        self.dtype: torch.dtype = getattr(self._first, "law_dtype", torch.float64)
        self.tolerance = TOLERANCE[self.dtype]
        self.stirred: bool = getattr(self._first, "law_stirs", True)
        self.goes_on = self.causal and "resumable" not in getattr(self._first, "lacks", {})
        self._cache: dict[torch.dtype, nn.Module] = {}

    def make(self, dim: int, salt: int = 0) -> nn.Module:
        """A new module of the target, or a copy of the module that the target is. `salt` draws other parameters.

        Raises InputError if it is no module.
        """
        torch.manual_seed(self.seed + salt)
        if isinstance(self.target, nn.Module):
            return copy.deepcopy(self.target).eval()
        module = self.target(dim=dim) if self.takes_dim else self.target()
        if not isinstance(module, nn.Module):
            raise InputError(f"laws are for torch modules; {self.name_of(self.target)} made a {type(module).__name__}")
        return module.eval()

    @staticmethod
    def name_of(target: Any) -> str:
        """A name for reports."""
        return getattr(target, "__name__", type(target).__name__)

    @property
    def module(self) -> nn.Module:
        """The module, for what it declares."""
        return self._first

    @property
    def causal(self) -> bool:
        """Whether the module says that it is causal."""
        return bool(self.declared("causal"))

    def declared(self, name: str) -> Any:
        """What the module declares, or what the contract says where it declares nothing."""
        return getattr(self._first, name, getattr(SequenceModule, name, None))

    @property
    def chunk(self) -> int:
        """The longest chunk that any part of the module works in; where none says, that of the fused kernels."""
        sizes = [getattr(m, "chunk", None) for m in self._first.modules()]
        return min(max((n for n in sizes if isinstance(n, int)), default=KERNEL_CHUNK), 128)

    def at(self, dim: int) -> Subject:
        """The same target at another width."""
        return Subject(self.target, dim, self.seed)

    def new(self, dtype: torch.dtype) -> nn.Module:
        """A module of its own in `dtype`, for what changes it.

        Parameters that are one number throughout, as gains and biases are at the start, are moved off it: behind a zero
        any error could hide. Not so where findings have to be shown on the module as others make it.
        """
        module = self.make(self.dim)
        if not self.stirred:
            return module.to(dtype)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for p in module.parameters():
                if p.is_floating_point() and p.numel() and (p == p.flatten()[0]).all():
                    p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
        return module.to(dtype)

    def get(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The module in `dtype`, shared by all laws: not to be changed."""
        dtype = dtype or self.dtype
        if dtype not in self._cache:
            self._cache[dtype] = self.new(dtype)
        return self._cache[dtype]

    def inputs(self, case: Case, rows: int | None = None, length: int | None = None, salt: int = 0) -> Tensor:
        """The input of a case: [rows, length, dim], or tokens [rows, length] for a module that reads tokens.

        A shorter or narrower case has the same numbers as far as it goes. `salt` gives other numbers for the same case.
        """
        rows, length = case.rows if rows is None else rows, case.width if length is None else length
        generator = torch.Generator().manual_seed(7919 * case.seed + salt)
        most = (max(rows, 4), max(length, 160))
        if self.vocabulary is not None:
            return torch.randint(0, self.vocabulary, most, generator=generator)[:rows, :length]
        drawn = torch.randn(*most, self.dim, generator=generator, dtype=torch.float64)[:rows, :length]
        return (case.scale * drawn).to(self.dtype)

    def run(
        self, x: Tensor, state: StateTree = None, layout: Layout | None = None, module: nn.Module | None = None
    ) -> tuple[Tensor, StateTree]:
        """Output and state of the module; Breach if it does not give the two of them."""
        given = (module or self.get())(x, state, layout) if layout is not None else (module or self.get())(x, state)
        if not isinstance(given, tuple) or len(given) != 2:
            raise Breach(f"forward must return (output, state), it returned {type(given).__name__}")
        y, after = given
        if self.declared("ratio") == 1.0 and y.shape[:2] != x.shape[:2]:
            raise Breach(f"{_rows(x)} come out as {_rows(y)}: an output of shape {list(y.shape)}")
        return y, after

    def run_pieces(self, x: Tensor, case: Case, layout: Layout | None = None, module: nn.Module | None = None) -> Any:
        """Output and last state of the module run piece by piece, the state handed on."""
        outputs, state = [], None
        for begin, end in case.pieces:
            part = None if layout is None else layout.slice(begin, end)
            y, state = self.run(x[:, begin:end], state, part, module)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state


def _takes_dim(target: Any) -> bool:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
    return "dim" in parameters


def _rows(x: Tensor) -> str:
    return f"{x.shape[0]} rows of {x.shape[1] if x.ndim > 1 else 0} tokens"
