"""Pieces of a picture as sequences."""

import builtins

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.tasks import pictures
from lengthwise.tasks.pictures import Crops

ROWS, COLUMNS = 40, 60


def crops(side=5, levels=256, split=30):
    """Pieces of a picture in which the level tells the column, and with `ROWS` the row."""
    return Crops(side, levels, split, np.broadcast_to(np.arange(COLUMNS), (ROWS, COLUMNS)))


@settings(max_examples=20, deadline=None)
@given(side=st.integers(1, 20), seed=st.integers(0, 999))
def test_pieces_are_read_row_by_row_and_no_pixel_is_on_both_sides(side, seed):
    made = crops(side)
    train, test = next(made.batches(50, seed=seed)), made.held_out(50)
    assert train.shape == test.shape == (50, side**2)
    for pieces in (train, test):
        squares = pieces.view(50, side, side)
        assert torch.equal(squares, squares[:, :1, :1] + torch.arange(side).expand(side, -1))
    assert train.max() < 30 <= test.min()
    assert test.max() < COLUMNS


def test_every_place_is_drawn():
    made = crops(side=20)
    assert set(next(made.batches(999))[:, 0].tolist()) == set(range(11))
    assert set(made.held_out(999)[:, 0].tolist()) == set(range(30, 41))
    rows = Crops(20, 256, 30, np.broadcast_to(np.arange(ROWS)[:, None], (ROWS, COLUMNS)))
    assert set(next(rows.batches(999))[:, 0].tolist()) == set(range(21))


@given(levels=st.integers(2, 256))
def test_levels_are_of_equal_width(levels):
    grey = np.arange(256).reshape(1, 256).repeat(2, 0)
    found = torch.cat([next(Crops(1, levels, 128, grey).batches(2000)), Crops(1, levels, 128, grey).held_out(2000)])
    assert set(found.flatten().tolist()) <= set(range(levels))
    assert found.max() == levels - 1
    assert crops(levels=levels).vocab_size == levels


def test_the_seed_and_the_step_decide():
    whole, later, other = (crops().batches(3, seed=s, start=n) for s, n in ((4, 0), (4, 2), (5, 0)))
    first = next(whole)
    next(whole)
    assert torch.equal(next(whole), next(later))
    assert not torch.equal(first, next(other))
    assert torch.equal(crops().held_out(3), crops().held_out(3))


def test_the_cameraman():
    pytest.importorskip("skimage")
    made = Crops()
    assert (made.length, made.vocab_size) == (256, 32)
    assert made.grey.shape == (512, 512)
    assert len(next(made.batches(40)).unique()) > 16
    assert made.held_out(200).shape == (200, 256)


def test_without_scikit_image_it_says_what_to_install(monkeypatch):
    find = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("skimage"):
            raise ImportError(name)
        return find(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    pictures.camera.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'lengthwise\[images\]'"):
        Crops()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: crops(side=0), "side must be at least 1"),
        (lambda: crops(levels=1), "levels must be at least 2"),
        (lambda: crops(side=31), "no room for pieces of 31 by 31"),
        (lambda: crops(side=5, split=56), "40 by 60 split at column 56"),
        (lambda: crops(side=5, split=4), "split at column 4"),
        (lambda: Crops(picture=np.zeros((9, 9, 3))), r"got \[9, 9, 3\]"),
        (lambda: next(crops().batches(0)), "batch must be at least 1"),
        (lambda: crops().held_out(0), "count must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
