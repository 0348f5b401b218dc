"""A causal model of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.contract import Layout, SequenceModule, State, StateTree
from lengthwise.errors import InputError
from lengthwise.models.embedding import TokenStack, model_config, place
from lengthwise.models.saving import save_model
from lengthwise.ops.initial import begin_normal
from lengthwise.ops.linear import Linear


@dataclass(frozen=True)
class LanguageModelState(State):
    """The states of the branches, and the next position of each row where positions are added to the embeddings."""

    layers: StateTree
    position: Int[Tensor, " batch"] | None = None


class LanguageModel(TokenStack):
    """A causal language model: p(token_{t+1} | token_1 … token_t) = softmax(W norm(h_t)).

    vocab_size: number of different tokens; 256 for bytes.
    dim: width. layers: an expression, as "12*(attention + swiglu)"; each name is one pre-norm residual branch.
    position: how order enters; an encoding of the embeddings (learned, sinusoidal) or one for the attention layers
    (rope, alibi, t5, none). norm: "rmsnorm" or "layernorm". tie: the output matrix, which starts from N(0, 0.02²), is
    the embedding too.

    `model(tokens, state=None, layout=None)` gives logits [batch, length, vocab_size] and the state to go on from.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        dim: int = 256,
        layers: str = "4*(attention + swiglu)",
        position: str = "rope",
        norm: str = "rmsnorm",
        tie: bool = False,
        parts: Mapping[str, type[SequenceModule]] | None = None,
    ):
        config = model_config(locals())
        super().__init__(vocab_size, dim, layers, position, norm, causal=True, parts=parts)
        if not self.stack.causal:
            raise InputError(f"a language model must be causal, and these layers are not: {layers}")
        self.config = config
        self.head = Linear(dim, vocab_size, bias=False)
        begin_normal(self.head)
        if tie:
            self.embedding.weight = self.head.weight

    def forward(  # type: ignore[override]
        self,
        x: Int[Tensor, "batch length"],
        state: LanguageModelState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length vocab"], LanguageModelState]:
        """Logits for the token after each one, and the state after the last."""
        hidden, state = self.hidden(x, state, layout)
        return self.head(hidden), state

    def hidden(
        self,
        tokens: Int[Tensor, "batch length"],
        state: LanguageModelState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], LanguageModelState]:
        """The normed output of the last branch, from which the logits are read."""
        after = positions = None
        if self.position is not None:
            past = None if state is None else state.position
            positions = place(tokens, past) if layout is None else layout.positions
            if tokens.shape[1]:
                after = positions[:, -1] + 1
            else:
                after = tokens.new_zeros(tokens.shape[0]) if past is None else past
        x, layers = self.stack(self.embed(tokens, positions), None if state is None else state.layers, layout)
        return self.norm(x), LanguageModelState(layers, after)

    def begin(self, source: Float[Tensor, "batch source dim"], layout: Layout | None = None) -> LanguageModelState:
        """The state before the first token where layers read an encoded source."""
        return LanguageModelState(self.stack.begin(source, layout))

    def state_nbytes(self, length: int) -> int:
        """That of the branches, and one position where positions are added to the embeddings."""
        return self.stack.state_nbytes(length) + (8 if self.position is not None else 0)

    def save(self, path: str | Path) -> None:
        """Write the model to a folder: config.json and model.safetensors."""
        save_model(self, path)
