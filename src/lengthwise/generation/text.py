"""Tokens as text while they arrive: a character can be several tokens long."""

from __future__ import annotations

import codecs
from typing import ClassVar

from lengthwise.errors import InputError
from lengthwise.models.tokenizer import Tokenizer

BEFORE = 8
"""Tokens of a prompt that are decoded together with what comes after it."""

LONGEST = 4
"""Tokens of a character at most: it has up to 4 bytes, and each token one or more."""

LOST = "\ufffd"
"""What bytes that are no character, or none yet, are decoded to."""


class ByteText:
    """Tokens that are bytes of UTF-8. A character is given out when its last byte has come; what can't become one is
    given out as U+FFFD."""

    vocab_size = 256
    first: ClassVar[list[int]] = []
    last: ClassVar[int | None] = None

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
    """Tokens of a tokenizer. What a token means can depend on those before it, so the latest are decoded together with
    it, and only what is new and complete is given out. Bytes that can't become a character any more are given out as
    U+FFFD, so that no more than `LONGEST` tokens ever wait.

    first: the tokens before the first text of a sequence. last: the token that ends a text, where there is one.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.first, self.last = tokenizer.first, tokenizer.special("eos_token")
        self.told: list[int] = []
        self.held: list[int] = []
        self.before = ""

    def encode(self, text: bytes) -> list[int]:
        """The tokens of a text in UTF-8, which what is pushed afterwards goes on with."""
        tokens = self.tokenizer.encode(text)
        begin = max(0, len(tokens) - BEFORE)
        for _ in range(min(begin, 3)):  # back to where a character of up to 4 bytes begins: a rest spoils what follows
            if self.tokenizer.decode(tokens[begin:]).startswith(LOST):
                begin -= 1
        self._tell(tokens[begin:])
        return tokens

    def push(self, token: int) -> str:
        """The text that a further token completes."""
        self.held.append(token)
        new = self._new()
        if new and not new.endswith(LOST):
            self._tell(self.held)
            return new
        if len(self.held) < LONGEST:
            return ""
        # The last U+FFFD may still become a character; whatever stands before it has had all the bytes that it can.
        self._tell(self.held)
        self.before = self.before.removesuffix(LOST)
        return new.removesuffix(LOST)

    def flush(self) -> str:
        """What is left of an unfinished character."""
        return self._new()

    def _tell(self, tokens: list[int]) -> None:
        """Go on after tokens of which all text, `before`, is given out."""
        self.told, self.held, self.before = tokens, [], self.tokenizer.decode(tokens)

    def _new(self) -> str:
        """The text that isn't given out yet. A byte that spoils the characters before it in one run of bytes, as some
        tokenizers decode it, comes after them here, since they are given out."""
        text = self.tokenizer.decode(self.told + self.held)
        return text[len(self.before) :] if text.startswith(self.before) else self.tokenizer.decode(self.held)


def text_of(tokenizer: Tokenizer | None, vocab_size: int) -> ByteText | TokenizerText:
    """How tokens of a model become text: through the tokenizer it was trained with, or as bytes without one."""
    if tokenizer is not None:
        tokenizer.require(vocab_size)
        return TokenizerText(tokenizer)
    if vocab_size != ByteText.vocab_size:
        raise InputError(f"the model has a vocabulary of {vocab_size}, which isn't bytes; give its --tokenizer")
    return ByteText()
