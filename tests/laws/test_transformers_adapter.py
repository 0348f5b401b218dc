"""What the laws find in transformers, with random tiny models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lengthwise import laws
from lengthwise.errors import InputError
from lengthwise.laws.script import script

transformers = pytest.importorskip("transformers", minversion="5.0")

from lengthwise.laws.transformers_adapter import from_folder, tiny  # noqa: E402

FOUND = pytest.mark.skipif(
    not transformers.__version__.startswith(("5.23", "5.24")), reason="a finding in transformers 5.23 and 5.24"
)


def broken(name, wanted=None):
    subject = laws.Subject(tiny(name))
    return subject, {v.law: v for v in laws.examine(subject, wanted) if v.outcome == "broken"}


def run_script(text):
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert len(text.strip().splitlines()) <= 15
    assert "lengthwise" not in text
    return ran


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Mamba2ForCausalLM", "GPT2LMHeadModel", "MistralForCausalLM"])
def test_good_classes_keep_every_law_asked_of_them(name):
    subject, found = broken(name)
    assert not found
    assert "resumable" not in subject.module.lacks


@FOUND
@pytest.mark.parametrize(("name", "least"), [("MambaForCausalLM", 1e-4), ("FalconMambaForCausalLM", 1e-2)])
def test_mamba_forgets_its_cache_with_more_than_one_new_token(name, least):
    subject, found = broken(name)
    assert list(found) == ["resumable"]
    case = found["resumable"].case
    assert (case.batch, case.length, case.cuts) == (1, 3, (1,))  # two new tokens: one alone is right
    ran = run_script(script(subject, found["resumable"]))
    assert ran.returncode == 0, ran.stderr
    difference = float(re.search(r"logits: (\S+)", ran.stdout).group(1))
    assert least < difference < 1
    assert f"off by {difference:.2g}" in found["resumable"].message


@FOUND
def test_rwkv_mixes_rows_on_one_token_and_raises_in_the_backward():
    subject, found = broken("RwkvForCausalLM")
    assert list(found) == ["resumable", "padding", "rows", "finite"]
    case = found["resumable"].case
    assert (case.batch, case.length, case.cuts) == (2, 2, (1,))
    ran = run_script(script(subject, found["resumable"]))
    assert "shapes: (2, 2, 64) (2, 1, 64)" in ran.stdout
    assert (found["rows"].case.batch, found["rows"].case.length) == (2, 1)
    padded = run_script(script(subject, found["padding"]))
    assert max(map(float, re.findall(r"logits: (\S+)", padded.stdout))) > 0.1
    assert "raises RuntimeError" in found["finite"].message
    assert run_script(script(subject, found["finite"])).returncode == 1


@pytest.mark.skipif(not transformers.__version__.startswith("5.24"), reason="the page names transformers 5.24")
def test_the_page_says_what_is_found():
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+For\w+) \| ([\w, ]+) \| ([\d.]*) ?\| ([\w ,]*)\|$", page, re.MULTILINE)
    assert len(rows) == 5
    for name, laws_broken, off, smallest in rows:
        subject, found = broken(name)
        assert (", ".join(found) or "none") == laws_broken
        if "resumable" in found:
            assert str(found["resumable"].case) == smallest.strip()
        if off:
            assert f"off by {off} " in found["resumable"].first[1]
        if name == "FalconMambaForCausalLM":
            assert script(subject, found["resumable"]) in page


def test_unknown_classes_are_an_input_error_with_the_nearest():
    with pytest.raises(InputError, match="LlamaForCausalLM"):
        tiny("LlamaForCasualLM")
    with pytest.raises(InputError):
        tiny("pipeline")


def test_a_local_folder_is_read_from_safetensors_only(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    subject = laws.Subject(from_folder(tmp_path / "llama", "LlamaForCausalLM"))
    assert all(v.outcome != "broken" for v in laws.examine(subject, ["resumable", "saved"]))
    weights = tmp_path / "llama" / "model.safetensors"
    torch.save({}, tmp_path / "llama" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(InputError, match="safetensors"):
        from_folder(tmp_path / "llama", "LlamaForCausalLM")
