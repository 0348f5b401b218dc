"""The tokenizer that a model was trained with, kept beside its weights.

It is a Hugging Face tokenizer.json, which holds no code, and what transformers keeps beside it, tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError
from lengthwise.models.files import read_json, write_json, write_text

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
"""The tokens that have a meaning of their own, by the names that settings have for them."""


class Tokenizer:
    """Texts as tokens and back, as tokenizer.json says. It is read when it is first used, by the package `tokenizers`.

    content: the file. settings: what tokenizer_config.json says; a tokenizer without them puts nothing before a text.
    source: where it is from, named in errors.
    """

    def __init__(self, content: str, settings: Mapping[str, Any] | None = None, source: str = TOKENIZER):
        self.content, self.settings, self.source = content, dict(settings or {}), source

    @staticmethod
    def read(path: Path) -> Tokenizer:
        """The tokenizer in a file, with the settings beside it."""
        if not path.is_file():
            raise InputError(f"there is no tokenizer file {str(path)!r}")
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{str(path)!r} is not a Hugging Face tokenizer.json (it is no text)") from None
        beside = path.with_name(TOKENIZER_CONFIG)
        settings = read_json(beside) if beside.is_file() else {}
        if not isinstance(settings, dict):
            raise InputError(f"{str(beside)!r} must hold settings by their names")
        return Tokenizer(content, settings, str(path))

    @staticmethod
    def beside(folder: Path) -> Tokenizer | None:
        """The tokenizer in a model's folder; None where there is none, as for a model of bytes."""
        return Tokenizer.read(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None

    def save(self, folder: Path) -> None:
        """Write the files to a model's folder."""
        write_text(folder / TOKENIZER, self.content)
        if self.settings:
            write_json(folder / TOKENIZER_CONFIG, self.settings)

    @cached_property
    def built(self) -> Any:
        """The package's tokenizer."""
        try:
            from tokenizers import Tokenizer as Loader
        except ImportError:
            raise InputError("a tokenizer needs the package tokenizers; pip install 'lengthwise[hf]'") from None
        try:
            return Loader.from_str(self.content)
        except Exception as error:  # the package raises bare Exception for whatever is wrong with the file
            raise InputError(f"{self.source!r} is not a Hugging Face tokenizer.json ({error})") from None

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token."""
        return max(self.built.get_vocab().values(), default=-1) + 1

    def require(self, vocab_size: int) -> None:
        """Raise InputError for a model whose vocabulary is too small."""
        if self.vocab_size > vocab_size:
            raise InputError(
                f"the tokenizer has a vocabulary of {self.vocab_size} and the model one of {vocab_size}; "
                "give the one that it was trained with"
            )

    @cached_property
    def first(self) -> list[int]:
        """The tokens before the first of a text, as the beginning of a sequence that Llama was trained with."""
        if not self.settings:
            return []
        whole, alone = (self.built.encode("a", add_special_tokens=added).ids for added in (True, False))
        starts = [n for n in range(len(whole)) if whole[n : n + len(alone)] == alone]
        return whole[: starts[0]] if starts else []

    def special(self, name: str) -> int | None:
        """The token that the settings name so, as "eos_token"; None where they don't."""
        given = self.settings.get(name)
        content = given.get("content") if isinstance(given, dict) else given
        return self.built.token_to_id(content) if isinstance(content, str) else None

    def encode(self, text: str | bytes) -> list[int]:
        """The tokens of a text, of which bytes that aren't UTF-8 become U+FFFD. Nothing is put before or after it."""
        text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
        return self.built.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, those with a meaning of their own written out."""
        return self.built.decode(list(tokens), skip_special_tokens=False)
