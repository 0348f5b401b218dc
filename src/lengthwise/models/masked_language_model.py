"""A bidirectional model that fills in tokens."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.contract import Layout, SequenceModule, StateTree
from lengthwise.models.embedding import model_config
from lengthwise.models.encoder import Encoder
from lengthwise.models.stack import build_norm
from lengthwise.ops.initial import begin_normal


class MaskedLanguageModel(Encoder):
    """An encoder that says of every place which token stands there, also where a mask token hides it.

        logits = E norm(gelu(W h + b)) + c          [batch, length, vocab_size]

    E is the embedding, W: [dim, dim]. Arguments as Encoder's. E and W begin as N(0, 0.02²), b and c as 0.
    Devlin et al. 2018, arXiv 1810.04805.
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
        super().__init__(vocab_size, dim, layers, position, norm, types, parts)
        self.config = config
        self.head_map = nn.Linear(dim, dim)
        self.head_norm = build_norm(norm, dim)
        self.head = nn.Linear(dim, vocab_size)
        begin_normal(self.head_map, self.head)
        self.embedding.weight = self.head.weight

    def forward(  # type: ignore[override]
        self,
        x: Int[Tensor, "batch length"],
        state: StateTree = None,
        layout: Layout | None = None,
        types: Int[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length vocab"], None]:
        """Logits of the token at each place."""
        hidden, _ = super().forward(x, state, layout, types)
        return self.head(self.head_norm(F.gelu(self.head_map(hidden)))), None
