"""A model that reads one sequence and writes another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.contract import Layout, SequenceModule, state_tensors
from lengthwise.errors import InputError
from lengthwise.mixers.cross_attention import CrossAttention
from lengthwise.models.embedding import model_config
from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel, LanguageModelState
from lengthwise.models.saving import save_model
from lengthwise.models.tokenizer import Tokenizer


class EncoderDecoder(SequenceModule):
    """A language model of targets that has read a source: p(y_{t+1} | y_1 … y_t, s) = softmax(W norm(h_t)).

        e = encoder(s)            h = decoder(y), whose cross-attention layers read e

    encoder: an expression as Encoder's; every kind of layer that reads both ways stands there. decoder: one as
    LanguageModel's, in which `cross_attention` stands beside all other parts. vocab_size: of source and target;
    source_vocab_size: of the source, where it has its own. position: as LanguageModel's; source_position: that of the
    encoder, where it differs. dim, norm: of both. shared: one matrix is the embedding of source and target. tie: it
    is the output matrix too.

        state = model.encode(source, source_layout)           once for each source
        logits, state = model(tokens, state, layout)          from there on as a LanguageModel
        logits, state = model(tokens, source=source)          both together, for training

    The source is kept once, in the state, as the keys and values of every cross-attention layer; a decoded token makes
    none of them anew. With several documents in a row, the n-th reads the n-th document of the row's source, and all
    read a source that is one document. A source of no token gives 0 for what attention reads of it.

    `model.answering(source)` is the decoder with a source that doesn't change, as a module of its own.
    tokenizer: the one that the model was trained with, kept in its folder; None for tokens that are bytes or no text.
    Vaswani et al. 2017, arXiv 1706.03762.
    """

    tokenizer: Tokenizer | None = None

    def __init__(
        self,
        vocab_size: int = 256,
        dim: int = 256,
        encoder: str = "4*(attention + swiglu)",
        decoder: str = "4*(attention + cross_attention + swiglu)",
        position: str = "rope",
        norm: str = "rmsnorm",
        tie: bool = False,
        shared: bool = False,
        source_vocab_size: int | None = None,
        source_position: str | None = None,
        parts: Mapping[str, type[SequenceModule]] | None = None,
    ):
        config = model_config(locals())
        super().__init__()
        self.config, self.vocab_size, self.dim = config, vocab_size, dim
        if (tie or shared) and source_vocab_size not in (None, vocab_size):
            what = "tie" if tie else "shared"
            raise InputError(f"{what} needs one vocabulary, got vocab_size={vocab_size} and {source_vocab_size=}")
        self.encoder = Encoder(
            source_vocab_size or vocab_size, dim, encoder, source_position or position, norm, parts=parts
        )
        known: dict[str, type[SequenceModule]] = {"cross_attention": CrossAttention, **(parts or {})}
        self.decoder = LanguageModel(vocab_size, dim, decoder, position, norm, tie, known)
        readers = [module for module in self.decoder.modules() if isinstance(module, CrossAttention)]
        if not readers:
            raise InputError(f"no layer of this decoder reads the source; give it cross_attention: {decoder}")
        handed = state_tensors(self.decoder.begin(self.decoder.embedding.weight.new_zeros(1, 0, dim)))
        if sum(1 for _ in handed) != 2 * len(readers):
            raise InputError(
                f"cross_attention stands inside of a combinator that doesn't hand it the source: {decoder}"
            )
        if tie or shared:
            self.encoder.embedding.weight = self.decoder.embedding.weight
        self.growth, self.receptive_field = self.decoder.growth, self.decoder.receptive_field
        self.compiles = self.encoder.compiles and self.decoder.compiles  # type: ignore[misc]
        self.breaks = {**self.encoder.breaks, **self.decoder.breaks}  # type: ignore[misc]

    def encode(self, source: Int[Tensor, "batch source"], layout: Layout | None = None) -> LanguageModelState:
        """The state in which the source has been read, and no token of the target."""
        return self.decoder.begin(self.encoder(source, None, layout)[0], layout)

    def forward(  # type: ignore[override]
        self,
        x: Int[Tensor, "batch length"],
        state: LanguageModelState | None = None,
        layout: Layout | None = None,
        source: Int[Tensor, "batch source"] | None = None,
        source_layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length vocab"], LanguageModelState]:
        """Logits for the token after each one, and the state after the last. Either a state or a source is given."""
        if (state is None) == (source is None):
            what = "neither" if state is None else "both"
            raise InputError(f"give the state that encode(source) or this model gave, or a source: got {what}")
        if source is not None:
            state = self.encode(source, source_layout)
        return self.decoder(x, state, layout)

    def state_nbytes(self, length: int, source: int = 0, documents: bool = False) -> int:
        """That of the decoder, with the keys and values of a source of `source` tokens; documents: whether it has
        padding or several documents."""
        readers = [module for module in self.decoder.modules() if isinstance(module, CrossAttention)]
        return self.decoder.state_nbytes(length) + sum(r.state_nbytes(length, source, documents) for r in readers)

    def answering(self, source: Int[Tensor, "rows source"], layout: Layout | None = None) -> Answering:
        """The decoder once it has read this source: a module that does without being told of one."""
        return Answering(self, source, layout)

    def save(self, path: str | Path) -> None:
        """Write the model to a folder: config.json and model.safetensors."""
        save_model(self, path)


class Answering(SequenceModule):
    """The decoder of a model that has read the same source for every row: a module of tokens as a LanguageModel is.

    source: [1, source], with its layout where it has padding or several documents.
    """

    source: Tensor

    def __init__(self, model: EncoderDecoder, source: Int[Tensor, "1 source"], layout: Layout | None = None):
        super().__init__()
        self.model, self.layout = model, layout
        self.register_buffer("source", source, persistent=False)
        self.vocab_size, self.dim = model.vocab_size, model.dim
        self.growth, self.receptive_field = model.growth, model.receptive_field
        self.compiles, self.breaks = model.compiles, model.breaks  # type: ignore[misc]

    def forward(  # type: ignore[override]
        self,
        x: Int[Tensor, "batch length"],
        state: LanguageModelState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length vocab"], LanguageModelState]:
        """As the model's. Without a state the answer begins here."""
        if state is None:
            rows = x.new_zeros(len(x))
            state = self.model.encode(self.source[rows], None if self.layout is None else self.layout.select(rows))
        return self.model(x, state, layout)

    def state_nbytes(self, length: int) -> int:
        """As the model's, for this source."""
        return self.model.state_nbytes(length, self.source.shape[1], documents=self.layout is not None)
