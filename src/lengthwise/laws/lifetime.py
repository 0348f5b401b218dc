"""Laws about what lasts: how the state grows, saving and reloading, compilation."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from lengthwise.contract import StateTree, map_state, state_nbytes, state_tensors
from lengthwise.laws.law import Breach, Case, Law, equal
from lengthwise.laws.order import no_state
from lengthwise.laws.subject import Subject

FAR = 1_000_000
"""A length at which a bounded state has stopped growing."""


@torch.no_grad()
def growth(subject: Subject, case: Case) -> None:
    """The state is as large as `state_nbytes` says, and grows as `growth` declares."""
    module, declared = subject.get(torch.float32), subject.declared("growth")
    x = subject.inputs(case)
    x = x.float() if x.is_floating_point() else x
    measured = {}
    for length in sorted({n for n in (1, 2, case.length // 2, case.length) if n <= case.length}):
        _, state = subject.run(x[:, :length], module=module)
        measured[length] = state_nbytes(state) // case.batch
    _, state = subject.run_pieces(
        x, Case(batch=case.batch, length=case.length, cuts=tuple(range(1, case.length))), module=module
    )
    stepped = state_nbytes(state) // case.batch
    if stepped != measured[case.length]:
        raise Breach(
            f"{stepped} bytes a row after {case.length} tokens one by one, {measured[case.length]} in one piece"
        )
    formula = getattr(module, "state_nbytes", None)
    if formula is not None and _defined(formula):
        for length, nbytes in measured.items():
            if formula(length) != nbytes:
                raise Breach(f"state_nbytes({length}) says {formula(length)}, the state has {nbytes} bytes a row")
        # A state that empties whenever a chunk ends is bounded by the largest that it is within a chunk.
        span = max((n for m in module.modules() if isinstance(n := getattr(m, "chunk", None), int)), default=1)
        steps = range(span if declared == "window" else 1)
        measured = {length: max(formula(length + step) for step in steps) for length in (FAR, 2 * FAR)}
    (short, few), (long, many) = list(measured.items())[-2:]
    if declared == "constant" and many != few:
        raise Breach(f"declared constant: {few} bytes a row after {short} tokens, {many} after {long}")
    if declared == "window" and many != few and short >= _bound(subject, short):
        raise Breach(f"declared bounded by a window: {few} bytes a row after {short} tokens, {many} after {long}")
    if declared == "linear" and not few < many <= few * long / short + few:
        raise Breach(f"declared linear: {few} bytes a row after {short} tokens, {many} after {long}")


def _defined(formula) -> bool:
    try:
        formula(1)
    except NotImplementedError:
        return False
    return True


def _bound(subject: Subject, otherwise: int) -> int:
    reach = subject.declared("receptive_field")
    return otherwise if reach is None else int(reach)


def through_bytes(state: StateTree) -> StateTree:
    """The state after being written as safetensors and read again."""
    tensors = {f"{i:04}": t.detach().clone().contiguous() for i, t in enumerate(state_tensors(state))}
    again = load(save(tensors))
    numbers = iter(sorted(again))
    return map_state(lambda _: again[next(numbers)], state)


@torch.no_grad()
def saved(subject: Subject, case: Case) -> None:
    """Written as safetensors and read into a new module, the module and its state give the same bits."""
    module, other = subject.get(), subject.make(subject.dim, salt=1).to(subject.dtype)
    tensors: dict[str, Tensor] = {k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}
    if not subject.makes:
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(load(save(tensors)))
    x, more = subject.inputs(case), subject.inputs(case, length=3, salt=1)
    expected, state = subject.run(x)
    y, _ = subject.run(x, module=other)
    equal(y, expected, 0.0, "output of the reloaded module")
    if state is not None:
        expected, _ = subject.run(more, state)
        y, _ = subject.run(more, through_bytes(state), module=other)
        equal(y, expected, 0.0, "going on from the reloaded state")


def compiled(subject: Subject, case: Case) -> None:
    """Under `torch.compile`, as one graph, forward, backward and going on from a state give the same."""
    module = subject.get(torch.float32)
    x = subject.inputs(case)
    x = x.float() if x.is_floating_point() else x
    y, wanted = _pass(module, module, x)
    torch.compiler.reset()
    try:
        got, found = _pass(torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False), module, x)
    except Exception as error:
        raise Breach(f"torch.compile fails: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
    finally:
        torch.compiler.reset()
    equal(got, y, 5e-5, "compiled output")
    for a, b in zip(found, wanted, strict=True):
        equal(a.flatten(), b.flatten(), 5e-5, "gradient of the compiled module")


def _pass(run: Any, module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output and, where there is a state to go on from, that of going on; and the gradients of the parameters."""
    y, state = run(x)
    if state is not None:
        y = torch.cat([y, run(x[:, : x.shape[1] // 2], state)[0]], dim=1)
    by = [p for p in module.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(y.mean(), by, allow_unused=True) if y.requires_grad else ()
    return y, [g for g in slopes if g is not None]


def _not_declared(subject: Subject) -> str | None:
    return None if subject.declared("compiles") else "not declared"


LAWS = [
    Law(
        "growth",
        "the state is as large as its formula says and grows as declared",
        lambda s: [Case(batch=2, length=24)],  # noqa: ARG005
        growth,
        no_state,
    ),
    Law("saved", "saved and reloaded, module and state give the same bits", lambda s: [Case()], saved),  # noqa: ARG005
    Law("compile", "works under torch.compile", lambda s: [Case(length=6)], compiled, _not_declared),  # noqa: ARG005
]
