"""SmolLM2-135M-Instruct from its GGUF file, against transformers, which reads the same file."""

import pytest
import torch

import lengthwise as lw
from lengthwise.commands.convert import convert
from lengthwise.conversion import save_transformers
from lengthwise.generation.text import TokenizerText

pytest.importorskip("gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate")
transformers = pytest.importorskip("transformers", minversion="5.0")

from tests.conversion.gguf_files import smollm2  # noqa: E402 - needs the package gguf
from tests.training.runs import verb  # noqa: E402

TEXTS = [
    "The capital of France is",
    "",
    " ",
    "   leading and trailing   ",
    "def f(x):\n    return x**2  # squares\n\n\n\tif x == '':\n        pass\n",
    "naïve café, Straße, 東京タワー, Привет мир, שלום, 🦊👩‍👩‍👧",
    "I'm sure they'll say it's 1,234.50 dollars in 2024!!! (really?)",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a\r\nb\u00a0c\u2003d\x00\x7f",
    "https://example.org/a_b-c?d=%20&e=[1]{2}",
]


@pytest.fixture(scope="module")
def ours():
    return lw.load(smollm2()).eval()


@pytest.fixture(scope="module")
def theirs():
    path = smollm2()
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def their_tokenizer():
    path = smollm2()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_transformers_and_become_the_text_again(ours, their_tokenizer, text):
    tokens = ours.tokenizer.encode(text)
    assert tokens == their_tokenizer(text).input_ids
    assert ours.tokenizer.decode(tokens) == text
    shown = TokenizerText(ours.tokenizer)
    assert "".join(shown.push(token) for token in tokens) + shown.flush() == text


def test_digits_stand_alone_as_the_tokenizer_was_trained(ours, their_tokenizer):
    """The spaces before a number are cut from it, which transformers, cutting as GPT-2 does, leaves out."""
    tokenizers = pytest.importorskip("tokenizers")
    cut = tokenizers.pre_tokenizers
    published = their_tokenizer.backend_tokenizer
    published.pre_tokenizer = cut.Sequence([cut.Digits(individual_digits=True), cut.ByteLevel(add_prefix_space=False)])
    for text in [*TEXTS, "a   12  b 3", "x  1", "٣  ½ ²"]:
        assert ours.tokenizer.encode(text) == published.encode(text, add_special_tokens=False).ids


def test_the_settings_of_the_file(ours):
    assert ours.config["position"] == "rope(base=100000.0)"
    assert ours.config["norm"] == "rmsnorm"
    assert ours.tokenizer.first == []
    assert ours.tokenizer.special("eos_token") == 2


@pytest.mark.slow
@torch.no_grad()
def test_logits_and_greedy_tokens_are_those_of_transformers(ours, theirs):
    for text in (TEXTS[0], TEXTS[4], TEXTS[5]):
        tokens = torch.tensor([ours.tokenizer.encode(text)])
        # Both sum in float32, in orders of their own, over 30 layers.
        torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, rtol=0, atol=1e-3)
    prompt = ours.tokenizer.encode("The theory of general relativity says that")
    found = list(lw.generate(ours, prompt, max_tokens=64, temperature=0))
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, suppress_tokens=None
    )
    stopped = theirs.generation_config.eos_token_id
    assert stopped not in found  # min_new_tokens forbids transformers to stop
    assert found == expected[0, len(prompt) :].tolist()


@pytest.mark.slow
@torch.no_grad()
def test_transformers_reads_what_is_written(ours, tmp_path):
    save_transformers(ours, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert tokenizer(text).input_ids == ours.tokenizer.encode(text)
    assert tokenizer.eos_token_id == again.config.eos_token_id == 2
    assert "<|im_start|>" in tokenizer.chat_template
    tokens = torch.tensor([ours.tokenizer.encode(TEXTS[4])])
    torch.testing.assert_close(again(tokens).logits, ours(tokens)[0], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_command_line_goes_on_with_a_text_and_converts(tmp_path, capfdbinary):
    path = str(smollm2())
    assert convert(smollm2(), tmp_path / "ours") == 0
    capfdbinary.readouterr()
    ask = ["--prompt", "The capital of France is", "--max-tokens", "8", "--temperature", "0"]
    for place in (path, str(tmp_path / "ours")):
        assert verb("generate", place, *ask) == 0
        assert "Paris" in capfdbinary.readouterr().out.decode()
