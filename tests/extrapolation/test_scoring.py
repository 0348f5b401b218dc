import math

import numpy as np
import pytest
import torch
from torch import nn

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.extrapolation.keys import ASK, ASKED, CHANCE, KEYS, hide, questions, with_keys
from lengthwise.extrapolation.scoring import Grid, halves, held_out_windows, measure, within
from lengthwise.reports.records import Measurement, Skipped
from lengthwise.tasks.corpus import Corpus, Document
from tests.comparison.test_scoring import Copier, Uniform

GRID = Grid(16, (16, 32, 64))


@pytest.fixture(scope="module")
def windows():
    return torch.randint(97, 123, (12, 65), generator=torch.Generator().manual_seed(0))


class Keeper(nn.Module):
    """Names the first byte of what it reads, if that lies within its reach; else it knows nothing."""

    def __init__(self, reach: int = 1000):
        super().__init__()
        self.reach = reach

    def forward(self, x, state=None, layout=None):
        logits = torch.zeros(*x.shape, 256)
        if x.shape[1] <= self.reach:
            logits[torch.arange(len(x)), :, x[:, 0]] = 9.0
        return logits, None


class LetterCopier(Copier):
    """The copier, of the 64 bytes from 90 on."""

    def forward(self, x, state=None, layout=None):
        logits, seen = super().forward(x - 90, state)
        return logits.roll(90, -1), seen


def measured(model, windows, **kwargs):
    found = list(measure(model, windows, GRID, name="a", told=lambda fraction: None, **kwargs))
    return {(m.measure, m.at): m for m in found if isinstance(m, Measurement)}, [
        s for s in found if isinstance(s, Skipped)
    ]


def test_a_model_that_knows_nothing_needs_eight_bits_everywhere_and_guesses_keys(windows):
    found, skipped = measured(Uniform(), windows)
    assert not skipped
    for at in GRID.lengths:
        assert found["bits_at_length", at].value == pytest.approx(8.0)
        assert [stop for key, stop in found if key == within(at)] == [stop for _, stop in GRID.ranges(at)]
        assert all(m.value == pytest.approx(8.0) for (key, _), m in found.items() if key == within(at))
    assert found["keys", 64].value <= 4 * CHANCE, "all answers alike: as many are right as keys are the first"


def test_keys_are_named_as_far_as_the_model_reaches(windows):
    found, _ = measured(Keeper(reach=32), windows)
    assert [found["keys", at].value for at in (8, 16, 32)] == [1.0, 1.0, 1.0]
    assert found["keys", 64].value < 0.5


def test_a_copied_passage_saves_what_it_takes_to_name_its_letters():
    found, _ = measured(LetterCopier(), torch.full((12, 65), 90), keys=False)
    assert ("keys", 64) not in found
    # Of four letters one is the cue. The copier needs the two before, so it knows two of three, each of log2(64) bits.
    assert found["copies", 64].value == pytest.approx(4.0, abs=1e-3)


def test_windows_of_all_lengths_end_at_the_same_bytes(windows):
    class LastByte(nn.Module):
        """Is sure of a byte that it was told beforehand."""

        def forward(self, x, state=None, layout=None):
            logits = torch.zeros(*x.shape, 256)
            logits[:, -1] = 30 * nn.functional.one_hot(windows[: len(x), -1], 256)
            return logits, None

    found, _ = measured(LastByte(), windows)
    expected = 8 * (GRID.last - 1) / GRID.last
    assert all(found["bits_at_length", at].value == pytest.approx(expected) for at in GRID.lengths)


def test_a_table_that_ends_is_skipped_with_its_end(windows):
    model = lw.LanguageModel(dim=16, layers="attention", position="learned(length=20)")
    found, skipped = measured(model, windows)
    assert ("bits_at_length", 16) in found
    assert ("bits_at_length", 32) not in found
    assert {(s.measure, s.at) for s in skipped} == {(m, at) for m in ("bits_at_length", "keys") for at in (32, 64)}
    assert {s.reason for s in skipped} == {"its positions end at 20"}


def test_a_scaling_is_set_for_each_length(windows):
    torch.manual_seed(0)
    model = lw.LanguageModel(dim=16, layers="attention(heads=2)", position="rope")
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    plain, _ = measured(model, windows)
    scaled, _ = measured(model, windows, scaling="ntk")
    assert plain["bits_at_length", 16] == scaled["bits_at_length", 16]
    assert plain["bits_at_length", 64] != scaled["bits_at_length", 64]


def test_ranges_double_with_a_border_at_the_trained_length():
    assert Grid(64, (64,)).ranges(256) == [(0, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256)]
    assert Grid(100, (100,)).ranges(300) == [(0, 12), (12, 25), (25, 50), (50, 100), (100, 200), (200, 300)]
    assert halves(16) == [8]
    assert halves(15) == []


def test_short_data_says_how_much_is_needed():
    short = Corpus((Document("a", np.zeros(500, np.uint8)),))
    with pytest.raises(InputError, match=r"8 windows of 256 bytes need 2,049 .* has 500; give about 20,490 bytes"):
        held_out_windows(short, 256, 64, 10)


def test_hidden_keys_are_asked_for_and_answered_after_they_were_shown():
    text = torch.full((4, 65), 97)
    hidden = hide(text, 3, (1, 2))
    assert torch.equal(hidden[3], text[3]), "only so many rows"
    assert (text == 97).all(), "the batch itself stays"
    for row in hidden[:3].tolist():
        keys = [place for place, byte in enumerate(row) if byte in KEYS]
        asked = [place for place, byte in enumerate(row) if byte == ASK]
        assert len({row[place] for place in keys}) == 1
        assert len(asked) == ASKED
        assert keys[1:] == [place + 1 for place in asked]
        assert keys[0] < asked[0]


def test_batches_with_keys_are_those_of_their_seed():
    def batches():
        return iter([torch.full((4, 17), 97)] * 3)

    first, again, other = (list(with_keys(batches(), 0.5, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all((rows[2:] == 97).all() for rows in first)


def test_a_question_stands_as_far_from_its_key_as_it_says(windows):
    text, keys = questions(windows, 20)
    assert text.shape == (12, 20)
    assert (text[:, 0] == keys).all()
    assert (text[:, -1] == ASK).all()
    assert torch.equal(text[:, 1:-1], windows[:, -19:-1])
    assert math.isclose(CHANCE, 1 / len(set(KEYS)))
