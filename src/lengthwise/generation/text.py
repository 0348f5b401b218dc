"""Tokens as text while they arrive: a character can be several tokens long."""

from __future__ import annotations

import codecs
from typing import Any

from lengthwise.errors import InputError


class ByteText:
    """Tokens that are bytes of UTF-8. A character is given out when its last byte has come; what can't become one is
    given out as U+FFFD."""

    vocab_size = 256

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def encode(self, text: bytes) -> list[int]:
        """The tokens of a text in UTF-8, which may be any bytes."""
        return list(text)

    def push(self, token: int) -> str:
        """The text that a further token completes."""
        return self.decoder.decode(bytes([token]))

    def flush(self) -> str:
        """What is left of an unfinished character."""
        return self.decoder.decode(b"", final=True)


class TokenizerText:
    """Tokens of a Hugging Face tokenizer. What a token means can depend on those before it, so the latest are decoded
    together with it, and only what is new and complete is given out."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        self.told: list[int] = []
        self.held: list[int] = []

    def encode(self, text: bytes) -> list[int]:
        """The tokens of a text in UTF-8."""
        return self.tokenizer.encode(text.decode("utf-8", errors="replace"), add_special_tokens=False).ids

    def push(self, token: int) -> str:
        """The text that a further token completes."""
        self.held.append(token)
        new = self._new()
        if not new or new.endswith("\ufffd"):
            return ""
        self.told, self.held = self.held, []
        return new

    def flush(self) -> str:
        """What is left of an unfinished character."""
        return self._new()

    def _new(self) -> str:
        before = self.tokenizer.decode(self.told, skip_special_tokens=False)
        return self.tokenizer.decode(self.told + self.held, skip_special_tokens=False)[len(before) :]


def text_of(tokenizer: Any, vocab_size: int) -> ByteText | TokenizerText:
    """How tokens of a model become text: through the tokenizer it was trained with, or as bytes without one."""
    if tokenizer is not None:
        text = TokenizerText(tokenizer)
        if text.vocab_size > vocab_size:
            raise InputError(
                f"the tokenizer has a vocabulary of {text.vocab_size} and the model one of {vocab_size}; "
                "give the one that it was trained with"
            )
        return text
    if vocab_size != ByteText.vocab_size:
        raise InputError(f"the model has a vocabulary of {vocab_size}, which isn't bytes; give its --tokenizer")
    return ByteText()
