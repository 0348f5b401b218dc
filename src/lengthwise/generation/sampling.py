"""How the next token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.models.tokenizer import Tokenizer

Prompt = str | bytes | Sequence[int] | Int[Tensor, " tokens"]
"""Tokens to continue. A text is read by the model's tokenizer, or as its bytes in UTF-8 where it has none."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from the logits z of the next one.

        p_i ∝ exp(z_i / temperature)        i among the top_k likeliest, and among the fewest that hold top_p

    temperature 0 takes the likeliest token. top_p is nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751), over
    what top_k leaves; the likeliest token always stays.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def probabilities(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        """The distribution that the token is drawn from."""
        z = logits if logits.dtype == torch.float64 else logits.float()
        if self.temperature == 0:
            return torch.zeros_like(z).index_fill(0, z.argmax(), 1.0)
        p = torch.softmax((z - z.max()) / self.temperature, dim=-1)
        likeliest = z.argsort(descending=True, stable=True)
        keep = torch.ones_like(p, dtype=torch.bool)
        if self.top_k is not None:
            keep[likeliest[self.top_k :]] = False
        if self.top_p is not None:
            p = p * keep / (p * keep).sum()
            before = p[likeliest].cumsum(0) - p[likeliest]
            keep[likeliest[1:][before[1:] >= self.top_p]] = False
        return p * keep / (p * keep).sum()

    def choose(self, logits: Float[Tensor, " vocab"], generator: torch.Generator) -> int:
        """A token drawn from the distribution; where the likeliest is taken nothing is drawn. Raises InputError when
        the logits aren't finite."""
        if not torch.isfinite(logits).all():
            raise InputError("the model's logits are not finite; the checkpoint may come from a run that diverged")
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits.cpu()), 1, generator=generator))


def as_tokens(prompt: Prompt, tokenizer: Tokenizer | None = None, first: bool = True) -> Int[Tensor, " tokens"]:
    """The tokens of a prompt. first: nothing stands before it, so that a text begins as the tokenizer begins one."""
    if isinstance(prompt, str | bytes) and tokenizer is not None:
        prompt = (tokenizer.first if first else []) + tokenizer.encode(prompt)
    if isinstance(prompt, str):
        prompt = prompt.encode("utf-8")
    if isinstance(prompt, Tensor):
        return prompt.long()
    return torch.tensor(list(prompt), dtype=torch.long)
