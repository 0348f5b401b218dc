"""A sequence that goes on: what a model has read and written so far, as its state, to be kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.contract import Layout, StateTree, map_state
from lengthwise.errors import InputError
from lengthwise.generation.sampling import Prompt, Sampling, as_tokens
from lengthwise.models.encoder_decoder import EncoderDecoder
from lengthwise.models.saving import own_tensors
from lengthwise.models.states import load_state, save_state
from lengthwise.models.tokenizer import Tokenizer

CHUNK = 1024
"""Tokens of a prompt that are read at a time."""

FORMAT = "lengthwise session 1"


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's parameters and buffers: states of one model mean nothing to another."""
    digest = hashlib.sha256()
    for name, tensor in own_tensors(model).items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {list(plain.shape)};".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.inference_mode()
def prefill(
    model: nn.Module, prompts: Sequence[Prompt], sources: Sequence[Prompt] | None = None
) -> tuple[Float[Tensor, "prompts vocab"], StateTree]:
    """Read several prompts at once: the logits after each, and a state whose rows are those of the prompts alone.

    All end together, since shorter ones have padding before them, which no document sees. `state.select` takes the rows
    to go on from. sources: for an encoder-decoder, what each prompt begins the answer to. Raises InputError where there
    is no prompt or one is empty.
    """
    rows = [as_tokens(prompt, tokenizer_of(model)) for prompt in prompts]
    lengths = [len(row) for row in rows]
    if not all(lengths) or not rows:
        raise InputError(f"give one prompt or more of at least one token each, got lengths {lengths}")
    if sources is not None and len(sources) != len(rows):
        raise InputError(f"give a source for each prompt, got {len(sources)} for {len(rows)}")
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    return _read(model, tokens, None if sources is None else encode(model, sources), Layout.padded(lengths))


@torch.inference_mode()
def encode(model: nn.Module, sources: Sequence[Prompt]) -> StateTree:
    """The state in which an encoder-decoder has read a source in each row, and has answered nothing yet.

    Raises InputError for a model that doesn't read a source, and for tokens outside the source's vocabulary.
    """
    if not isinstance(model, EncoderDecoder):
        raise InputError(f"a {type(model).__name__} reads no source; give it what to go on from as the prompt")
    rows = [as_tokens(source, tokenizer_of(model)) for source in sources]
    for row in rows:
        require_known(row, model.encoder.vocab_size)
    device, lengths = next(model.parameters()).device, [len(row) for row in rows]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    layout = None if len(set(lengths)) == 1 else Layout.padded(lengths, "right", device)
    with evaluating(model):
        return model.encode(tokens.to(device), layout)


def tokenizer_of(model: nn.Module) -> Tokenizer | None:
    """The tokenizer of a model, which must fit it; None for a model of bytes."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.require(model.vocab_size)
    return tokenizer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards as it was. One that is in it already is left alone: the mode is set
    module by module, which for a token decoded alone takes as long as some of its layers."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def require_known(tokens: Int[Tensor, " tokens"], vocabulary: int) -> None:
    """Raise InputError for the first token that is outside of a vocabulary."""
    outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(outside):
        raise InputError(f"token {int(outside[0])} is outside the model's vocabulary of {vocabulary}")


def _read(
    model: nn.Module, tokens: Int[Tensor, "rows tokens"], state: StateTree, layout: Layout | None = None
) -> tuple[Float[Tensor, "rows vocab"], StateTree]:
    """The logits after the last tokens and the state, with the model in evaluation mode, a chunk at a time."""
    device = next(model.parameters()).device
    logits = torch.empty(len(tokens), 1, 0)
    with evaluating(model):
        for begin in range(0, tokens.shape[1], CHUNK):
            end = begin + CHUNK
            part = None if layout is None else layout.slice(begin, end).to(device)
            logits, state = model(tokens[:, begin:end].to(device), state, part)
    return logits[:, -1], state


class Session:
    """A model, the state after all but the unread tokens, and the generator that chooses.

    The last token chosen is always unread: reading it gives the logits of the next. `save` keeps all of it, so that a
    session loaded from a file continues with the same tokens as one that never stopped.
    """

    def __init__(self, model: nn.Module, *, seed: int | None = None, state: StateTree = None):
        self.model = model
        self.state = state
        self.unread: Int[Tensor, " tokens"] = torch.empty(0, dtype=torch.long)
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def read(self, prompt: Prompt) -> None:
        """Take tokens in after what is there already."""
        tokens = as_tokens(prompt, tokenizer_of(self.model), self.state is None and not len(self.unread))
        vocabulary = getattr(self.model, "vocab_size", None)
        if vocabulary is not None:
            require_known(tokens, vocabulary)
        self.unread = torch.cat([self.unread, tokens.cpu()])

    def generate(self, max_tokens: int, sampling: Sampling) -> Iterator[int]:
        """Up to `max_tokens` tokens, each as soon as it is chosen."""
        if max_tokens < 0:
            raise InputError(f"max_tokens must be at least 0, got {max_tokens}")
        if not len(self.unread):
            raise InputError("there is no token to continue; give a prompt of at least one token")
        return self._generate(max_tokens, sampling)

    def _generate(self, max_tokens: int, sampling: Sampling) -> Iterator[int]:
        for _ in range(max_tokens):
            token = sampling.choose(self._logits(), self.generator)
            self.unread = torch.tensor([token])
            yield token

    @torch.inference_mode()
    def _logits(self, leave: int = 0) -> Float[Tensor, " vocab"]:
        """Read all tokens but the last `leave`; the logits after them."""
        end = len(self.unread) - leave
        logits, self.state = _read(self.model, self.unread[None, :end], self.state)
        self.unread = self.unread[end:]
        return logits[0]

    def save(self, path: str | Path) -> None:
        """Write the session to one safetensors file, with what is unread but for the last token read into the state."""
        if len(self.unread) > 1:
            self._logits(leave=1)
        generator = self.generator.get_state()
        kept = (map_state(lambda t: t.clone(), self.state), self.unread.clone(), generator)
        save_state(kept, path, {"format": FORMAT, "model": fingerprint(self.model)})

    @staticmethod
    def load(path: str | Path, model: nn.Module, *, seed: int | None = None) -> Session:
        """The session in a file that `save` wrote for the same model. `seed` begins its choices anew.

        Raises InputError where the file isn't one, is cut short, or belongs to another model.
        """
        kept, metadata = load_state(path)
        if metadata.get("format") != FORMAT or not isinstance(kept, tuple) or len(kept) != 3:
            raise InputError(f"{path} holds no session that lengthwise generate --save-state wrote")
        if metadata.get("model") != fingerprint(model):
            raise InputError(f"{path} was written with another checkpoint; give the one that it was saved from")
        device = next(model.parameters()).device
        session = Session(model, seed=seed, state=map_state(lambda t: t.to(device), kept[0]))
        session.unread = kept[1]
        if seed is None:
            session.generator.set_state(kept[2])
        return session
