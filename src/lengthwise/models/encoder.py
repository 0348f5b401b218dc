"""Bidirectional models of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, StateTree
from lengthwise.errors import InputError
from lengthwise.models.embedding import TokenStack, model_config, place
from lengthwise.models.saving import save_model
from lengthwise.ops.initial import begin_normal


class Encoder(TokenStack):
    """A bidirectional encoder: every token's output sees the whole document.

    Arguments as LanguageModel's. In `layers`, attention sees both sides; a mixer that is causal by nature stands as
    `bidirectional(mamba)`. types: the number of types of tokens, as the first and second sentence of a pair, each with
    an embedding that is added to the token's. `encoder(tokens, layout=None)` gives [batch, length, dim] and None.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        dim: int = 256,
        layers: str = "4*(attention + swiglu)",
        position: str = "rope",
        norm: str = "rmsnorm",
        types: int = 0,
        parts: Mapping[str, type[SequenceModule]] | None = None,
    ):
        config = model_config(locals())
        super().__init__(vocab_size, dim, layers, position, norm, causal=False, parts=parts, types=types)
        self.config = config

    def forward(  # type: ignore[override]
        self,
        x: Int[Tensor, "batch length"],
        state: StateTree = None,
        layout: Layout | None = None,
        types: Int[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], None]:
        """The normed output for every token, whose type may be given. An encoder can't go on from a state."""
        if state is not None:
            raise InputError("an encoder sees both sides and can't go on from a state; pass the whole sequence")
        positions = place(x, None) if layout is None else layout.positions
        hidden, _ = self.stack(self.embed(x, positions, types), None, layout)
        return self.norm(hidden), None

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """Nothing is kept."""
        return 0

    def save(self, path: str | Path) -> None:
        """Write the model to a folder: config.json and model.safetensors."""
        save_model(self, path)


class Classifier(Encoder):
    """An encoder whose outputs are averaged over the tokens that aren't padding, and mapped to classes.

        logits = W mean_t(h_t) + b          [batch, classes]

    One document a row. Arguments as Encoder's, and `classes`, the number of classes.
    """

    def __init__(
        self,
        classes: int,
        vocab_size: int = 256,
        dim: int = 256,
        layers: str = "4*(attention + swiglu)",
        position: str = "rope",
        norm: str = "rmsnorm",
        parts: Mapping[str, type[SequenceModule]] | None = None,
    ):
        config = model_config(locals())
        super().__init__(vocab_size, dim, layers, position, norm, parts=parts)
        if classes < 2:
            raise InputError(f"classes must be at least 2, got {classes}")
        self.config = config
        self.head = nn.Linear(dim, classes)
        begin_normal(self.head)

    def forward(  # type: ignore[override]
        self,
        x: Int[Tensor, "batch length"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch classes"], None]:
        """Logits of the classes for each row."""
        hidden, _ = super().forward(x, state, layout)
        if layout is None:
            return self.head(hidden.mean(dim=1)), None
        weight = (~layout.padding).to(hidden.dtype).unsqueeze(-1)
        return self.head((hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)), None
