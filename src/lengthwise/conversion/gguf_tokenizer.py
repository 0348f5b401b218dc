"""The tokenizers that GGUF files hold, as Hugging Face has them.

gpt2    byte-level BPE: tokens, merges, and the name of how a text is cut before
llama   SentencePiece's BPE: tokens and their scores; two tokens merge to the one with the highest score
"""

from __future__ import annotations

import json
import math
from typing import Any

from lengthwise.conversion.gguf_file import GGUFFile, is_a
from lengthwise.errors import InputError, unknown
from lengthwise.models.tokenizer import SPECIAL, Tokenizer

CONTROL, DEFINED = 3, 4
"""The types of tokens that stand for themselves: those with a meaning of their own, and words that are never cut."""

SPACE = "▁"
"""What SentencePiece writes for a space."""

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def isolated(regex: str) -> dict[str, Any]:
    """Cut a text into what a regular expression matches."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def words(digits: str) -> dict[str, Any]:
    """Contractions, words with what stands before them, so many digits, signs, and white space."""
    return isolated(
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


SINGLE_DIGITS, LLAMA3, QWEN2 = [DIGITS, GPT2], [words(r"\p{N}{1,3}"), BYTES], [words(r"\p{N}"), BYTES]

CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [GPT2],
    "smollm": SINGLE_DIGITS,
    "starcoder": SINGLE_DIGITS,
    "refact": SINGLE_DIGITS,
    "command-r": SINGLE_DIGITS,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
}
"""How a text is cut before its bytes are merged, by GGUF's names."""


def tokenizer_of(file: GGUFFile, vocab_size: int) -> Tokenizer | None:
    """The tokenizer in a file; None where there is none.

    Raises InputError for a kind that isn't known and for more tokens than the model has.
    """
    kind = file.metadata.get("tokenizer.ggml.model", "no_vocab")
    if kind == "no_vocab":
        return None
    if kind not in KINDS:
        raise unknown("tokenizer of GGUF", str(kind), KINDS)
    tokens = file.list_of("tokenizer.ggml.tokens", str)
    if not 0 < len(tokens) <= vocab_size:
        raise InputError(f"{file.path} has {len(tokens)} tokens, and its model a vocabulary of {vocab_size}")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{file.path} has {len(tokens)} tokens, of which only {len(set(tokens))} are different")
    settings = settings_of(file, tokens, kind)
    first = settings.get("bos_token") if settings["add_bos_token"] else None
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(file, tokens),
        **KINDS[kind](file, {token: number for number, token in enumerate(tokens)}),
        "post_processor": None if first is None else put_before(first, tokens.index(first)),
    }
    made = Tokenizer(json.dumps(content, ensure_ascii=False), settings, f"the tokenizer of {file.path}")
    made.vocab_size  # noqa: B018 - builds it, so that what is wrong with it is told here
    return made


def settings_of(file: GGUFFile, tokens: list[str], kind: str) -> dict[str, Any]:
    """What tokenizer_config.json says. SentencePiece's tokenizers and that of Llama 3 put a token before a text unless
    the file says that they don't, as in llama.cpp."""
    found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in SPECIAL:
        key = f"tokenizer.ggml.{KEYS.get(name, name)}_id"
        number = file.metadata.get(key)
        if number is None:
            continue
        if not is_a(number, int) or not 0 <= number < len(tokens):
            raise InputError(f"{file.path} has {key} = {number}, which is none of its {len(tokens)} tokens")
        found[name] = tokens[number]
    begins = kind == "llama" or CUTS.get(str(file.metadata.get("tokenizer.ggml.pre"))) is LLAMA3
    found["add_bos_token"] = file.setting("tokenizer.ggml.add_bos_token", bool, begins)
    template = file.setting("tokenizer.chat_template", str, "")
    return {**found, "chat_template": template} if template else found


KEYS = {"unk_token": "unknown_token", "pad_token": "padding_token"}
"""GGUF's names of the tokens with a meaning of their own, where they differ."""


def added(file: GGUFFile, tokens: list[str]) -> list[dict[str, Any]]:
    """The tokens that are found in a text before it is cut."""
    types = file.list_of("tokenizer.ggml.token_type", int, [1] * len(tokens))
    if len(types) != len(tokens):
        raise InputError(f"{file.path} has {len(types)} types for {len(tokens)} tokens")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": token, **plain, "special": kind == CONTROL}
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, DEFINED)
    ]


def put_before(token: str, number: int) -> dict[str, Any]:
    """A token before every text."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def byte_level(file: GGUFFile, vocabulary: dict[str, int]) -> dict[str, Any]:
    """Merges of bytes, each byte written as a letter."""
    cut = file.setting("tokenizer.ggml.pre", str)
    if cut not in CUTS:
        raise unknown("tokenizer.ggml.pre of GGUF", cut, CUTS)
    merges = [merge.split(" ") for merge in file.list_of("tokenizer.ggml.merges", str)]
    return {
        "normalizer": {"type": "NFC"} if CUTS[cut] is QWEN2 else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[cut]},
        "decoder": {**BYTES, "use_regex": True},
        "model": bpe(vocabulary, merges, ignore_merges=CUTS[cut] is LLAMA3),
    }


def sentencepiece(file: GGUFFile, vocabulary: dict[str, int]) -> dict[str, Any]:
    """Merges of characters, the best scored first; what has no token becomes its bytes."""
    scores = file.list_of("tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary) or not all(map(math.isfinite, scores)):
        raise InputError(f"{file.path} has {len(scores)} scores for {len(vocabulary)} tokens; each needs a number")
    merges = []
    for token in sorted(vocabulary, key=lambda token: -scores[vocabulary[token]]):
        halves = [(token[:n], token[n:]) for n in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    before = file.setting("tokenizer.ggml.add_space_prefix", bool, True)
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if before else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    fallen = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    model = bpe(vocabulary, [list(pair) for pair in merges], fuse_unk=True, byte_fallback=True)
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": ([{"type": "Prepend", "prepend": SPACE}] if before else []) + steps,
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {**model, "unk_token": next(token for token, number in vocabulary.items() if number == fallen)},
    }


def bpe(vocabulary: dict[str, int], merges: list[list[str]], **more: bool) -> dict[str, Any]:
    """The model of a tokenizer that merges pairs, the first in the list before the others."""
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    kinds = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **plain, **kinds, **more, "vocab": vocabulary, "merges": merges}


KINDS = {"gpt2": byte_level, "llama": sentencepiece}
"""The kinds of tokenizers, by GGUF's names."""
