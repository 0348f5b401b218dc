"""An encoder-decoder that has read a source keeps the laws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lengthwise import laws
from lengthwise.contract import Layout
from lengthwise.models import EncoderDecoder
from tests.laws.encoder_decoders import KINDS, SMALL, draw

EVERYDAY = [name for name in laws.LAWS if name != "compile"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_that_has_read_a_source_keeps_the_laws(kind):
    laws.check(lambda dim: EncoderDecoder(**{**SMALL, **KINDS[kind]}).answering(draw(1, 6)), dim=8, laws=EVERYDAY)


def test_so_it_does_with_padding_in_the_source():
    def made(dim):
        return EncoderDecoder(**SMALL).answering(draw(1, 6), Layout.padded([4, 6]).select(torch.tensor([0])))

    laws.check(made, dim=8, laws=["causal", "resumable", "value", "packed", "padding", "rows", "growth", "saved"])


COMPILE = """
from lengthwise import laws
from lengthwise.models import EncoderDecoder
from tests.laws.encoder_decoders import SMALL, draw

model = lambda dim: EncoderDecoder(**{**SMALL, "encoder": "attention(heads=2)"}).answering(draw(1, 6))
laws.check(model, dim=8, laws=["compile"])
"""


@pytest.mark.slow
def test_it_compiles():
    """In a process of its own: the run-time checks of shapes, which are on in the tests, don't compile."""
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=300, cwd=root)
    assert ran.returncode == 0, ran.stderr[-2000:]
