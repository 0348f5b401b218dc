"""Laws about numbers: fast forms against the reference, gradients, precision, extremes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lengthwise.contract import State, StateTree, map_state, state_tensors
from lengthwise.laws.law import Breach, Case, Law, equal
from lengthwise.laws.order import lacking
from lengthwise.laws.subject import Subject
from lengthwise.ops.backend import use

STEPS = (1e-5, 1e-6, 1e-7)
"""Steps of the finite differences, in units of the direction. In float64 the rounding of a difference is then at most
1e-9 of the loss. A gradient is wrong if it differs at every step; a kink shows only at steps that cross it."""

GRADIENT_TOLERANCE = 1e-6
"""Between a gradient and its finite difference, relative to the largest product of gradient and direction."""

BFLOAT16_TOLERANCE = 0.06
"""Root mean square of the difference between bfloat16 and float32, relative to that of the output: about fifteen
roundings of 2⁻⁸ one on another."""

FORM_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4}
"""Between two forms of an op, relative to the largest number: chunked sums are in another order, and gradients of
parameters are sums over every token."""

SCALES = (0.0, 1e-20, 1e4)
"""Inputs that division, square roots, exponentials and their gradients find hard."""


def leaves(state: StateTree) -> tuple[list[Tensor], StateTree]:
    """The floating-point tensors of a state as leaves that take gradients, and the state made of them."""
    taken: list[Tensor] = []

    def leaf(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        taken.append(t.detach().clone().requires_grad_())
        return taken[-1]

    return taken, map_state(leaf, state)


def weights_like(y: Tensor, seed: int = 0) -> Tensor:
    """Fixed random weights that turn an output into a loss: a sum of squares would hide errors that keep it."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(y)


def loss_of(subject: Subject, module: nn.Module, x: Tensor, case: Case, state: StateTree) -> Tensor:
    """A loss of the outputs of all pieces and of the last state."""
    layout, total = case.layout, torch.zeros((), dtype=torch.float64)
    for begin, end in case.pieces:
        part = None if layout is None else layout.slice(begin, end)
        y, state = subject.run(x[:, begin:end], state, part, module)
        total = total + (weights_like(y, begin) * y).sum().double()
    for i, t in enumerate(state_tensors(state)):
        if t.is_floating_point() and t.requires_grad:
            # Running maxima start at -inf or -1e30, and say nothing of a gradient.
            finite = torch.where(t.abs() < 1e6, t, 0.0)
            total = total + 0.1 * (weights_like(t, i) * finite).sum().double()
    return total


def variables(subject: Subject, case: Case, module: nn.Module) -> tuple[dict[str, Tensor], Tensor, StateTree]:
    """What a loss is differentiated by, by name; the input and the initial state among it."""
    dtype = next((p.dtype for p in module.parameters()), subject.dtype)
    x = subject.inputs(case)
    named: dict[str, Tensor] = {}
    if x.is_floating_point():
        x = named["the input"] = x.to(dtype).requires_grad_()
    named |= {f"parameter {name}": p for name, p in module.named_parameters() if p.requires_grad}
    state: StateTree = None
    if subject.causal and case.documents is None:
        before = subject.inputs(case, length=3, salt=1)
        with torch.no_grad():
            _, state = subject.run(before.to(dtype) if before.is_floating_point() else before, module=module)
        taken, state = leaves(state)
        named |= {f"tensor {i} of the initial state": t for i, t in enumerate(taken)}
    return named, x, state


def fast(subject: Subject, case: Case) -> None:
    """Every form of the ops gives what the reference gives: outputs, last state and gradients."""
    for dtype in (torch.float64, torch.float32):
        module = subject.get(dtype)
        results = {}
        for form in ("reference", case.form or "auto"):
            with use(form):
                named, x, state = variables(subject, case, module)
                loss = loss_of(subject, module, x, case, state)
                gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
                y, last = subject.run(x.detach(), state, case.layout, module)
            results[form] = (y, list(state_tensors(last)), dict(zip(named, gradients, strict=True)))
        (y, last, wanted), (got_y, got_last, got) = results["reference"], results[case.form or "auto"]
        tolerance, precision = FORM_TOLERANCE[dtype], str(dtype).removeprefix("torch.")
        equal(got_y, y, tolerance, f"output of form {case.form!r} against the reference in {precision}")
        for a, b in zip(got_last, last, strict=True):
            equal(a, b, tolerance, f"last state of form {case.form!r} against the reference in {precision}")
        for name, gradient in wanted.items():
            if gradient is None or got[name] is None:
                continue
            what = f"gradient of {name}, form {case.form!r} against the reference in {precision}"
            equal(got[name].flatten(), gradient.flatten(), tolerance, what)


def forms(subject: Subject) -> list[str]:
    """The fast forms of the ops that the module calls."""
    seen: set[str] = set()
    for length in (3, subject.chunk + 1):
        with use("reference") as called, torch.no_grad():
            subject.run(subject.inputs(Case(length=length)))
        seen |= called
    return sorted(seen - {"reference"})


def form_cases(subject: Subject) -> Iterable[Case]:
    """Every form, on short, chunk-long and packed input."""
    for form in forms(subject):
        for length in (7, 1, subject.chunk + 1):
            yield Case(batch=2, length=length, form=form)
        yield Case(documents=((4, 1, 3), (7, 1)), form=form)
        yield Case(documents=((1,) * 8, (3, 0, 5)), form=form)


def gradients(subject: Subject, case: Case) -> None:
    """Gradients equal finite differences along a random direction of the input, parameters and initial state."""
    module = subject.get(torch.float64)
    named, x, state = variables(subject, case, module)
    loss = loss_of(subject, module, x, case, state)
    if not loss.requires_grad:
        return
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    steps = []
    for seed, ((name, at), gradient) in enumerate(zip(named.items(), found, strict=True)):
        generator = torch.Generator().manual_seed(seed + 1)
        direction = torch.randn(at.shape, generator=generator, dtype=torch.float64)
        # A state may hold -inf or -1e30 for "nothing yet": no difference can be taken there.
        direction = torch.where(at.detach().abs() < 1e6, direction, 0.0)
        slopes = torch.zeros(()) if gradient is None else gradient * direction
        steps.append(Step(name, at, direction, float(slopes.sum()), float(slopes.abs().sum())))

    def losses() -> float:
        return float(loss_of(subject, module, x, case, state).detach())

    # All at once is as strict as one by one, and cheaper; one by one finds who is wrong.
    if _wrong(steps, losses):
        raise Breach(next(filter(None, (_wrong([step], losses) for step in steps)), _wrong(steps, losses)))


@dataclass(frozen=True)
class Step:
    """A variable, a direction from it, the slope along it that its gradient says, and the size of the slope's terms."""

    name: str
    at: Tensor
    direction: Tensor
    slope: float
    size: float


def _wrong(steps: list[Step], losses: Callable[[], float]) -> str:
    slope = sum(step.slope for step in steps)
    size = sum(step.size for step in steps)
    for length in STEPS:
        difference = _difference(steps, losses, length)
        allowed = GRADIENT_TOLERANCE * max(1.0, size, abs(difference))
        if abs(slope - difference) <= allowed:
            return ""
    name = steps[0].name if len(steps) == 1 else "everything together"
    return (
        f"gradient of {name}: {slope:.6g} along a random direction, and the finite difference is "
        f"{difference:.6g} (allowed {allowed:.0e})"
    )


def _difference(steps: list[Step], losses: Callable[[], float], length: float) -> float:
    kept = [step.at.detach().clone() for step in steps]

    def move(by: float) -> None:
        with torch.no_grad():
            for step, start in zip(steps, kept, strict=True):
                step.at.copy_(start + by * step.direction)

    try:
        move(length)
        above = losses()
        move(-length)
        return (above - losses()) / (2 * length)
    finally:
        move(0.0)


@torch.no_grad()
def bfloat16(subject: Subject, case: Case) -> None:
    """In bfloat16 the output stays close to float32's, and a recurrent state stays in float32."""
    x = subject.inputs(case)
    small, wide = subject.get(torch.bfloat16), subject.new(torch.bfloat16).to(torch.float32)
    rounded = x.to(torch.bfloat16) if x.is_floating_point() else x
    expected, _ = subject.run(rounded.float() if x.is_floating_point() else x, module=wide)
    y, state = subject.run(rounded, module=small)
    size = float(expected.float().square().mean().sqrt())
    off = float((y.float() - expected.float()).square().mean().sqrt()) / max(size, 1e-3)
    if not off <= BFLOAT16_TOLERANCE:
        raise Breach(f"bfloat16 is off from float32 by {off:.1%} (root mean square; allowed {BFLOAT16_TOLERANCE:.0%})")
    if subject.causal and subject.declared("growth") == "constant" and subject.declared("receptive_field") is None:
        for part in _recurrent_states(state):
            kinds = {t.dtype for t in state_tensors(part) if t.is_floating_point()}
            if kinds and torch.float32 not in kinds:
                raise Breach(
                    f"a recurrent state is kept in {kinds.pop()}, where it gathers rounding; keep it in float32"
                )


def _recurrent_states(state: StateTree) -> Iterable[StateTree]:
    if isinstance(state, tuple):
        for item in state:
            yield from _recurrent_states(item)
    elif isinstance(state, (State, Tensor)):
        yield state


def finite(subject: Subject, case: Case) -> None:
    """No NaN and no overflow, in output, state and gradients, at extreme inputs, padding included."""
    module = subject.get(torch.float32)
    x = subject.inputs(case)
    x = x.float().requires_grad_() if x.is_floating_point() else x
    y, state = subject.run(x, None, case.layout, module)
    _all_finite(y, "the output")
    for t in state_tensors(state):
        if t.is_floating_point() and torch.isnan(t).any():
            raise Breach("NaN in the state")
    wanted = {"the input": x} if x.requires_grad else {}
    wanted |= {f"parameter {name}": p for name, p in module.named_parameters() if p.requires_grad}
    if wanted and y.requires_grad:
        found = torch.autograd.grad(y.mean(), list(wanted.values()), allow_unused=True)
        for name, gradient in zip(wanted, found, strict=True):
            if gradient is not None:
                _all_finite(gradient, f"the gradient of {name}")


def _all_finite(t: Tensor, what: str) -> None:
    bad = ~torch.isfinite(t)
    if bad.any():
        raise Breach(f"{what} has {int(bad.sum())} of {t.numel()} numbers that are NaN or infinite")


def lengths(subject: Subject, case: Case) -> None:
    """Any length works: the output is finite, has its shape and, if causal, is the beginning of a longer run's."""
    x = subject.inputs(case).requires_grad_(subject.vocabulary is None)
    y, state = subject.run(x)
    _all_finite(y, "the output")
    if y.requires_grad:
        y.sum().backward()
        if x.grad is not None:
            _all_finite(x.grad, "the gradient of the input")
    if subject.causal:
        with torch.no_grad():
            whole = subject.inputs(case, length=case.length + 2)
            expected, _ = subject.run(whole)
            equal(y, expected[:, : case.length], subject.tolerance, f"length {case.length} against a longer run")
            if not subject.goes_on:
                return
            more, _ = subject.run(whole[:, case.length :], state)
            what = f"two tokens after length {case.length}"
            equal(more, expected[:, case.length :], subject.tolerance, what)


def length_cases(subject: Subject) -> Iterable[Case]:
    """0, 1, 2 and around a chunk."""
    chunk = subject.chunk
    return [Case(length=n) for n in sorted({0, 1, 2, chunk - 1, chunk, chunk + 1}) if n >= 0]


def gradient_cases(subject: Subject) -> Iterable[Case]:
    """One piece, two pieces with the gradient through the state, packed documents, more than a chunk."""
    yield Case(batch=1, length=5)
    if subject.causal:
        yield Case(length=6, cuts=(2,))
    yield Case(documents=((3, 1, 2),))
    yield Case(documents=((1,) * 4,))
    yield Case(batch=1, length=subject.chunk + 1)


def finite_cases(subject: Subject) -> Iterable[Case]:
    """One document, and rows with starts at some tokens, at every token, padded, and with padding alone."""
    scales = SCALES if subject.vocabulary is None else (1.0,)
    for scale in scales:
        yield Case(length=20, scale=scale)
    if "packed" not in lacking(subject):
        for scale in dict.fromkeys((1.0, *scales)):
            yield Case(documents=((4, 1, 7), (9,), (1,) * 12, (0,)), scale=scale)


def _no_forms(subject: Subject) -> str | None:
    return None if forms(subject) else "calls no op that has more than one form"


LAWS = [
    Law("fast", "every form of the ops equals the reference, value and gradient", form_cases, fast, _no_forms),
    Law("gradients", "gradients equal finite differences in float64", gradient_cases, gradients),
    Law("bfloat16", "bfloat16 stays close to float32", lambda s: [Case(length=s.chunk + 8)], bfloat16),
    Law("lengths", "any length works: 0, 1, one less and one more than a chunk", length_cases, lengths),
    Law("finite", "no NaN and no overflow at extreme inputs, nor at padding", finite_cases, finite),
]
