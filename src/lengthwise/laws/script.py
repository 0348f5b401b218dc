"""A short script that shows a finding about a transformers model without lengthwise."""

from __future__ import annotations

from lengthwise.laws.law import Verdict
from lengthwise.laws.subject import Subject
from lengthwise.laws.transformers_adapter import Origin, TransformersModel


def script(subject: Subject, verdict: Verdict) -> str | None:
    """The script for a broken law, or None for a law that has none."""
    origin, model, case = subject.target, subject.module, verdict.case
    if not isinstance(origin, Origin) or not isinstance(model, TransformersModel) or case is None:
        return None
    if verdict.law == "resumable":
        body = _resumed(case.pieces, str(model.cache_argument))
    elif verdict.law == "finite":
        body = ["torch.set_grad_enabled(True)", "model(tokens, use_cache=True).logits.mean().backward()"]
    elif "gone on" in verdict.message or "going on" in verdict.message:
        return None  # the scripts of the others don't go on from a state
    elif verdict.law == "rows":
        body = ["together = model(tokens).logits", "alone = torch.cat([model(row[None]).logits for row in tokens])"]
        body.append(DIFFERENCE.format("together", "alone"))
    elif verdict.law == "padding" and case.documents:
        left = case.padding == "left"
        body = _padded([row[0] for row in case.documents], left, model.takes_positions)
    else:
        return None
    tokens = subject.inputs(case).tolist()
    lines = [*origin.code(subject.seed), f"tokens = torch.tensor({tokens})", "torch.set_grad_enabled(False)", *body]
    return "\n".join(lines)


DIFFERENCE = 'print("largest difference of logits:", ({0} - {1}).abs().max().item())'


def _resumed(pieces: list[tuple[int, int]], cache: str) -> list[str]:
    if len(pieces) == 2:
        cut = pieces[1][0]
        return [
            "whole = model(tokens).logits",
            f"cache = model(tokens[:, :{cut}], use_cache=True).{cache}",
            f"rest = model(tokens[:, {cut}:], {cache}=cache, use_cache=True).logits",
            f'print("shapes:", tuple(rest.shape), tuple(whole[:, {cut}:].shape))',
            DIFFERENCE.format("rest", f"whole[:, {cut}:]"),
        ]
    sizes = [end - begin for begin, end in pieces]
    return [
        "whole, cache, parts = model(tokens).logits, None, []",
        f"for piece in tokens.split({sizes}, dim=1):",
        f"    output = model(piece, {cache}=cache, use_cache=True)",
        f"    cache = output.{cache}",
        "    parts.append(output.logits)",
        DIFFERENCE.format("torch.cat(parts, 1)", "whole"),
    ]


def _padded(lengths: list[int], left: bool, positions: bool) -> list[str]:
    width = max(lengths)
    mask = [[0] * (width - n) + [1] * n if left else [1] * n + [0] * (width - n) for n in lengths]
    where = ", position_ids=(mask.cumsum(1) - 1).clamp_min(0)" if positions else ""
    return [
        f"mask = torch.tensor({mask})",
        f"padded = model(tokens, attention_mask=mask{where}).logits",
        "for row, real, logits in zip(tokens, mask.bool(), padded):",
        "    alone = model(row[real][None]).logits[0]",
        "    " + DIFFERENCE.format("logits[real]", "alone"),
    ]
