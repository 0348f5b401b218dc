"""Tokenizers in GGUF files: each against one that is built from the same vocabulary without GGUF."""

import itertools
import json

import numpy as np
import pytest

from lengthwise.conversion.gguf_file import read_gguf
from lengthwise.conversion.gguf_tokenizer import CUTS, tokenizer_of
from lengthwise.errors import InputError
from lengthwise.generation.text import TokenizerText

pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")

from tests.conversion import gguf_files as files  # noqa: E402 - needs the package gguf

TEXTS = [
    "",
    " ",
    "the quick brown fox",
    "   leading and trailing   ",
    "def f(x):\n    return x**2  # squares\n\n\n\tif x == '':\n        pass\n",
    "nai\u0308ve café, Straße, 東京タワー, Привет мир, 🦊👩‍👩‍👧",
    "I'm sure THEY'LL say it's 1,234.50 dollars in 20245!!! (really?)",
    "a\r\nb\u00a0c\u2003d\x7f   12345678 ½²",
    "<s>the</s> fox<s>",
]
CORPUS = [
    "the quick brown fox, the lazy dog's 1234567 days in 2024\n\n",
    "def f(x):\n    return x**2\n",
    "naïve café 東京",
]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the tokenizer.json of Llama 3 and of Qwen2 cut a text."""


def read(path, kind, tokens, **more):
    """The tokenizer of a file that has nothing else."""
    settings = {"model": kind, "tokens": tokens, **more}
    named = {f"tokenizer.ggml.{name}": value for name, value in settings.items() if value is not None}
    return tokenizer_of(read_gguf(files.write(path / "m.gguf", named, {})), 4096)


def byte_level(pattern, **more):
    """A tokenizer trained on a few words, with its vocabulary and merges: the first tokens are <s> and </s>."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = tokenizers.pre_tokenizers
    alphabet = cut.ByteLevel.alphabet()
    made.pre_tokenizer = cut.Sequence(
        [
            cut.Split(tokenizers.Regex(pattern), "isolated"),
            cut.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS * 20, trainer)
    model = json.loads(made.to_str())["model"]
    vocabulary = {**model["vocab"], "Ġbrownfox": len(model["vocab"])}  # which no merges make
    merges = [tuple(pair) for pair in model["merges"]]
    made.model = tokenizers.models.BPE(vocabulary, merges, **more)
    return made, sorted(vocabulary, key=vocabulary.get), [" ".join(pair) for pair in merges]


@pytest.mark.parametrize(
    ("names", "pattern", "form", "whole_words"),
    [
        (("llama-bpe", "llama3", "llama-v3"), LLAMA3, None, True),
        (("qwen2", "deepseek-r1-qwen"), QWEN2, "NFC", False),
    ],
)
def test_texts_are_cut_and_merged_as_published(tmp_path, names, pattern, form, whole_words):
    expected, tokens, merges = byte_level(pattern, ignore_merges=whole_words)
    expected.normalizer = None if form is None else tokenizers.normalizers.NFC()
    types = [3, 3, *[1] * (len(tokens) - 2)]
    for name in names:
        found = read(tmp_path, "gpt2", tokens, merges=merges, pre=name, token_type=types, bos_token_id=0)
        for text in [*TEXTS, " brownfox"]:
            assert found.encode(text) == expected.encode(text, add_special_tokens=False).ids
            told = TokenizerText(found)
            shown = "".join(told.push(token) for token in told.encode(text.encode())) + told.flush()
            assert shown == (text if form is None else expected.decode(found.encode(text), skip_special_tokens=False))
        assert (tokens.index("Ġbrownfox") in found.encode(" brownfox")) is whole_words


def test_every_name_of_a_cut_is_read(tmp_path):
    _, tokens, merges = byte_level(LLAMA3)
    for name in CUTS:
        assert read(tmp_path, "gpt2", tokens, merges=merges, pre=name).decode([5]) == tokens[5]


def spm_vocabulary():
    """Tokens and scores as SentencePiece orders them: what has a meaning of its own, bytes, pieces by their scores,
    characters."""
    drawn = np.random.default_rng(10)
    words = [f"▁{word}" for word in " ".join(CORPUS).split()] + ["▁▁", "▁▁▁▁"]
    pieces = {word[a:b] for word in words for a in range(len(word)) for b in range(a + 2, len(word) + 1)}
    pieces = sorted(pieces)
    drawn.shuffle(pieces)
    letters = sorted({letter for word in words for letter in word})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *pieces, *letters]
    scores = [0.0] * 259 + [-float(n) for n in range(len(pieces) + len(letters))]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(letters))]
    return tokens, scores, types


def merged(text, tokens, scores):
    """SentencePiece's BPE: the two neighbours whose join scores best become one, the leftmost of them first."""
    known = dict(zip(tokens, scores, strict=True))
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [(-known[a + b], n) for n, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in known]
        if not pairs:
            break
        n = min(pairs)[1]
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    numbers = {token: number for number, token in enumerate(tokens)}
    return [n for part in parts for n in ([numbers[part]] if part in numbers else [3 + b for b in part.encode()])]


@pytest.mark.parametrize("text", TEXTS[:-1])
def test_sentencepieces_merges_go_by_score_and_unknown_characters_become_bytes(tmp_path, text):
    tokens, scores, types = spm_vocabulary()
    found = read(tmp_path, "llama", tokens, scores=scores, token_type=types, bos_token_id=1, eos_token_id=2)
    assert found.encode(text) == merged(text, tokens, scores)
    assert found.decode(found.encode(text)) == text
    assert found.first == [1]
    told = TokenizerText(found)
    assert "".join(told.push(token) for token in found.encode(text)) + told.flush() == text
    assert told.last == 2


def test_special_tokens_stand_alone(tmp_path):
    tokens, scores, types = spm_vocabulary()
    found = read(tmp_path, "llama", tokens, scores=scores, token_type=types)
    assert [token for token in found.encode(TEXTS[-1]) if token < 3] == [1, 2, 1]


def test_a_character_of_bytes_goes_on_behind_a_prompt_of_many(tmp_path):
    """The latest tokens of the prompt begin within a character; what follows them comes out as it is."""
    tokens, scores, types = spm_vocabulary()
    found = read(tmp_path, "llama", tokens, scores=scores, token_type=types)
    for prompt in ("Привет", "タワー", "🦊 タワー"):
        told = TokenizerText(found)
        told.encode(prompt.encode())
        assert "".join(told.push(token) for token in [3 + byte for byte in "Ж🦊".encode()]) + told.flush() == "Ж🦊"


@pytest.mark.parametrize(
    ("kind", "pre", "said", "first"),
    [
        ("gpt2", "gpt-2", None, []),
        ("gpt2", "qwen2", None, []),
        ("gpt2", "llama-bpe", None, [0]),
        ("gpt2", "llama-bpe", False, []),
        ("gpt2", "gpt-2", True, [0]),
        ("llama", None, None, [0]),
        ("llama", None, False, []),
    ],
)
def test_what_stands_before_a_text_is_what_the_file_says_or_the_kind_does(tmp_path, kind, pre, said, first):
    more = {"merges": ["a b"], "pre": pre} if kind == "gpt2" else {"scores": [0.0, -1.0, -2.0, -3.0, -4.0]}
    tokens, types = ["<s>", "a", "b", "ab", "▁"], [3, 1, 1, 1, 1]
    found = read(tmp_path, kind, tokens, token_type=types, bos_token_id=0, add_bos_token=said, **more)
    assert found.first == first


GPT2 = {"merges": ["a b"], "pre": "gpt-2"}
SPM = {"scores": [0.0, -1.0, -2.0]}


@pytest.mark.parametrize(
    ("kind", "tokens", "more", "message"),
    [
        ("gpt2", [1, 2], GPT2, "has 1 among tokenizer.ggml.tokens, which is no text"),
        ("gpt2", ["a", "a", "b", "ab"], GPT2, "4 tokens, of which only 3 are different"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "pre": "zz"}, "unknown tokenizer.ggml.pre of GGUF 'zz'; known"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "pre": None}, "lacks the setting tokenizer.ggml.pre"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "merges": None}, "lacks the setting tokenizer.ggml.merges"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "merges": [1]}, "has 1 among tokenizer.ggml.merges, which is no text"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "merges": ["ab"]}, "the tokenizer of .* is not a Hugging Face tokenizer"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "merges": ["a x"]}, "out of vocabulary"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "token_type": 1}, "token_type = 1, which is no list"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "token_type": [1]}, "1 types for 3 tokens"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "bos_token_id": 3}, "bos_token_id = 3, which is none of its 3 tokens"),
        ("gpt2", ["a", "b", "ab"], {**GPT2, "add_bos_token": 1}, "add_bos_token = 1, which is no yes or no"),
        ("gpt2", [f"t{n}" for n in range(4097)], GPT2, "4097 tokens, and its model a vocabulary of 4096"),
        ("llama", ["a", "b", "ab"], {}, "lacks the setting tokenizer.ggml.scores"),
        ("llama", ["a", "b", "ab"], {"scores": [0.0]}, "1 scores for 3 tokens"),
        ("llama", ["a", "b", "ab"], {"scores": ["x", "y", "z"]}, "has x among tokenizer.ggml.scores"),
        ("llama", ["a", "b", "ab"], {"scores": [0.0, float("nan"), 0.0]}, "each needs a number"),
        ("llama", ["a", "b", "ab"], {**SPM, "unknown_token_id": 9}, "unknown_token_id = 9"),
        ("t5", ["a", "b", "ab"], SPM, "unknown tokenizer of GGUF 't5'; known: gpt2, llama"),
    ],
)
def test_a_broken_tokenizer_is_one_clear_error(tmp_path, kind, tokens, more, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, kind, tokens, **more)
