"""Tokens into a stack of residual branches: what language models and encoders share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.contract import SequenceModule
from lengthwise.errors import InputError
from lengthwise.models.build import Settings, build_position, build_stack, heads_of
from lengthwise.models.stack import build_norm
from lengthwise.models.tokenizer import Tokenizer
from lengthwise.positions import Position


class TokenStack(SequenceModule):
    """Embedding, residual branches and final norm of a model over tokens.

    h_0 = E[token] (+ T[type], where tokens have types) (+ e(position), for a position that is added to the embeddings),
    then the branches, then the norm, unless the layers end with one of their own.
    Every other position is passed down to the attention layers, which share it. E starts from N(0, 1): a smaller start
    drowns a token's own embedding in what mixers with PyTorch's initial weights add to it; so does T.

    tokenizer: the one that the model was trained with, kept in its folder; None for tokens that are bytes or no text.
    """

    tokenizer: Tokenizer | None = None

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        layers: str,
        position: str,
        norm: str,
        causal: bool,
        parts: Mapping[str, type[SequenceModule]] | None = None,
        types: int = 0,
    ):
        super().__init__()
        if vocab_size < 1:
            raise InputError(f"vocab_size must be at least 1, got {vocab_size}")
        if types < 0:
            raise InputError(f"types must be at least 0, got {types}")
        self.vocab_size, self.dim = vocab_size, dim
        encoding = build_position(position, dim, causal, heads_of(layers))
        self.position: Position | None = encoding if encoding.has("embed") else None
        self.stack = build_stack(
            layers, dim, Settings(causal, None if encoding.has("embed") else encoding, norm, parts)
        )
        self.embedding = nn.Embedding(vocab_size, dim)
        self.types = nn.Embedding(types, dim) if types else None
        self.norm = nn.Identity() if self.stack.normed else build_norm(norm, dim)
        self.causal, self.growth, self.receptive_field = causal, self.stack.growth, self.stack.receptive_field
        self.compiles, self.breaks = self.stack.compiles, self.stack.breaks  # type: ignore[misc]
        every = [module for module in self.modules() if isinstance(module, Position)]
        self.begun = tuple(p for p in every if type(p).begin_pass is not Position.begin_pass)

    def embed(
        self,
        tokens: Int[Tensor, "batch length"],
        positions: Int[Tensor, "batch length"] | None,
        types: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """The embeddings, with their types, all 0 unless given, and their positions where the model adds them. A pass
        begins here."""
        for encoding in self.begun:
            encoding.begin_pass(self.training)
        x = self.embedding(tokens)
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        elif types is not None:
            raise InputError("this model tells no types of tokens apart; make it with types=2, say")
        return x if self.position is None or positions is None else self.position.embed(x, positions)


def model_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a model was made with, as its file keeps them."""
    return {name: value for name, value in values.items() if name not in ("self", "parts", "__class__")}


def place(tokens: Tensor, past: Tensor | None) -> Int[Tensor, "batch length"]:
    """Positions of tokens that go on after `past` tokens of each row."""
    batch, length = tokens.shape
    begin = torch.zeros(batch, 1, dtype=torch.long, device=tokens.device) if past is None else past[:, None]
    return begin + torch.arange(length, device=tokens.device)
