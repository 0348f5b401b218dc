"""The command line from outside: help, exit codes, and one sentence for what can't be used."""

import subprocess
import sys

import pytest

from lengthwise.cli import VERBS, examples


def lengthwise(*arguments, cwd=None, timeout=120):
    command = [sys.executable, "-m", "lengthwise", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False)


def test_help_lists_every_verb_and_imports_no_torch():
    code = (
        "import sys\nfrom lengthwise.cli import main\n"
        "try: main(['--help'])\nfinally: assert not {'torch', 'numba', 'plotly', 'transformers'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(f"• {verb}" in ran.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_shows_examples_that_call_it(verb):
    ran = lengthwise(verb, "--help")
    assert ran.returncode == 0
    shown = ran.stdout.partition("examples:\n")[2].splitlines()
    assert shown == examples(verb).splitlines()
    assert any(f"lengthwise {verb}" in line for line in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "no-such-file.txt"), "no-such-file.txt"),
        (("compare", "empty.txt"), "empty.txt"),
        (("compare", "tiny.txt"), "one context of length 512 needs 513"),
        (("compare", "hollow"), "hollow"),
        (("compare", "--layers", "4*(atention + swiglu)", "--layers", "mamba"), "did you mean attention"),
        (("compare", "--systems", "mambo"), "did you mean mamba"),
        (("compare", "--budget", "soon"), "soon"),
        (("extrapolate", "--positions", "alibbi"), "did you mean alibi"),
        (("extrapolate", "text.txt", "--times", "1", "64"), "need 32,769 bytes of held-out text"),
        (("extrapolate", "--checkpoints", "no-such-run"), "no-such-run"),
        (("train", "--layers", "attention(heads=7)", "--data", "text.txt"), "heads must divide dim"),
        (("train", "--layers", "attention(window=0)", "--data", "text.txt"), "window must be at least 1, got 0"),
        (("train", "no-such.yaml"), "no-such.yaml"),
        (("generate", "no-such-checkpoint"), "no-such-checkpoint"),
        (("evaluate", "no-such-checkpoint", "text.txt"), "no-such-checkpoint"),
        (("check", "deltanett"), "did you mean deltanet"),
        (("check", "no_such_module:Thing"), "no_such_module"),
        (("show", "mambo"), "did you mean mamba"),
        (("reproduce", "mambo"), "did you mean mamba"),
        (("bench", "selective_skan"), "did you mean selective_scan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_clear_sentence_and_exit_code_2(arguments, message, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "tiny.txt").write_bytes(b"abc")
    (tmp_path / "text.txt").write_bytes(b"some text, " * 5000)
    (tmp_path / "hollow").mkdir()
    ran = lengthwise(*arguments, cwd=tmp_path)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
