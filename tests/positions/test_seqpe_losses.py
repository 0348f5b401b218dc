"""The losses of sequential position encodings, and what is drawn for them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.positions import seqpe_losses as losses
from lengthwise.positions.seqpe import SeqPE
from lengthwise.positions.seqpe_table import Encodings
from lengthwise.training.auxiliary import auxiliary_loss


def test_transfer_is_nothing_where_the_student_is_the_teacher():
    torch.manual_seed(10)
    e = torch.randn(3, 5, 8)
    assert losses.transfer_loss(e, e.clone(), heads=2) == 0


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_transfer_is_both_divergences(reduction):
    torch.manual_seed(10)
    teacher, student = torch.randn(3, 5, 8).double(), torch.randn(3, 5, 8).double()
    total = 0.0
    for window in range(3):
        for part in (slice(0, 4), slice(4, 8)):
            for i in range(5):
                p, q = (
                    torch.softmax(torch.stack([e[window, i, part] @ e[window, j, part] for j in range(5)]), 0)
                    for e in (teacher, student)
                )
                total += float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    number = 3 * 2 * 5 * (5 if reduction == "mean" else 1)
    assert float(losses.transfer_loss(teacher, student, 2, reduction)) == pytest.approx(total / number)


def test_gradients_of_the_losses():
    torch.manual_seed(10)
    teacher, student = (torch.randn(2, 3, 4).double().requires_grad_() for _ in range(2))
    losses.transfer_loss(teacher, student, 2).backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: losses.transfer_loss(teacher, s, 2), student)
    pivots, label = torch.randn(2, 4).double().requires_grad_(), torch.tensor([2, 0])
    assert torch.autograd.gradcheck(lambda p, c: losses.contrastive_loss(p, c, label), (pivots, student))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), axes=st.integers(1, 3), limit=st.sampled_from([41, 100, 1000, 20_000]))
def test_candidates_differ_and_are_never_the_pivot(seed, axes, limit):
    torch.manual_seed(seed)
    pivots = torch.randint(limit, (7, axes))
    drawn = losses.draw_candidates(pivots, 32, limit, len(str(limit - 1)))
    assert drawn.min() >= 0
    assert drawn.max() < limit
    for pivot, row in zip(pivots.tolist(), drawn.tolist(), strict=True):
        assert len({tuple(pivot), *map(tuple, row)}) == 33


def test_some_candidates_are_near_and_some_are_a_digit_away():
    torch.manual_seed(10)
    pivots = torch.full((400, 1), 54_321)
    drawn = losses.draw_candidates(pivots, 32, 100_000, 5)[..., 0]
    near = drawn.amax(-1) - drawn.amin(-1) < 256
    assert 0.5 < near.double().mean() < 0.7
    assert (drawn[near].amin(-1) < 50_000).double().mean() > 0.3  # boxes lie anywhere
    alike = losses.to_digits(drawn[~near][..., None], 5) == torch.tensor([5, 4, 3, 2, 1])
    hard = (alike.sum(-1) >= 3).double().mean(0)
    assert hard[:8].mean() > 4 * hard[8:].mean()


def test_every_place_of_a_box_but_the_pivot_is_drawn():
    torch.manual_seed(10)
    for pivot, expected in ((7, {5, 6, 8}), (3, {5, 6, 7, 8})):
        drawn = losses.in_box(torch.tensor([[pivot]] * 200), torch.tensor([[5]] * 200), 4, 2)[..., 0]
        assert set(drawn.flatten().tolist()) == expected
        assert (drawn[:, 0] != drawn[:, 1]).all()


def test_the_nearest_is_by_euclidean_distance():
    pivots, candidates = torch.tensor([[5, 5]]), torch.tensor([[[5, 9], [8, 8], [2, 5]]])
    assert losses.nearest(pivots, candidates).tolist() == [2]


@given(st.lists(st.integers(0, 999), min_size=2, max_size=2))
def test_digits_there_and_back(position):
    there = losses.to_digits(torch.tensor(position), 3)
    assert "".join(map(str, there.tolist())) == "".join(f"{n:03d}" for n in position)
    assert losses.from_digits(there, 3, 2).tolist() == position


def test_far_windows_lie_beyond_the_trained_one():
    torch.manual_seed(10)
    one = losses.draw_far(500, (64,), 1000, torch.device("cpu"))
    assert 16 <= one.min() < 30
    assert 900 < one.max() < 1000 - 64
    two = losses.draw_far(500, (4, 4), 100, torch.device("cpu"))
    assert (two >= 4).any(-1).all()
    assert (two < 4).any()
    with pytest.raises(InputError, match="transfer=0"):
        losses.draw_far(1, (64,), 80, torch.device("cpu"))


def learner(**given):
    torch.manual_seed(10)
    given = {"heads": 2, "width": 8, "positions": 1000, **given}
    return SeqPE(8, **given).train()


def test_losses_are_left_once_for_each_pass():
    arguments = "heads=2, width=8, positions=1000, shift=0"
    model = lw.LanguageModel(32, dim=8, layers="2*attention(heads=2)", position=f"seqpe({arguments})").train()
    tokens = torch.randint(0, 32, (2, 12))
    model(tokens)
    assert auxiliary_loss(model) > 0
    assert auxiliary_loss(model) == 0
    model.eval()(tokens)
    assert auxiliary_loss(model) == 0
    with torch.no_grad():
        model.train()(tokens)
    assert auxiliary_loss(model) == 0


def test_weights_and_torchs_seed_say_what_is_lost():
    found = []
    for contrast, transfer in ((0.1, 0), (0, 0.1), (0.1, 0.1), (0.1, 0.1)):
        position = learner(contrast=contrast, transfer=transfer, shift=0)
        position.encodings.encoder.head.weight.data.mul_(50)  # encodings begin too small to be told apart
        torch.manual_seed(11)
        position.bias(torch.arange(40), torch.arange(40), 2)
        found.append(float(position.encodings.auxiliary.detach()))
    assert found[2] == found[3] != found[0]
    position = learner(contrast=0, transfer=0)
    position.bias(torch.arange(40), torch.arange(40), 2)
    assert position.encodings.auxiliary is None


@pytest.mark.parametrize("grid", [None, 5])
def test_a_shifted_pass_begins_elsewhere_and_transfers_nothing(grid):
    position = learner(shift=1, contrast=0, grid=grid)
    starts = set()
    for _ in range(8):
        position.begin_pass(True)
        e = position.rows(torch.arange(20))
        start = position.encodings.start
        starts.add(tuple(start.tolist()))
        coordinates = position.encodings.coordinates(torch.arange(20)) + start
        assert coordinates.max() < 1000
        assert torch.equal(e[0], position.encodings.encoder(coordinates))
        assert position.encodings.auxiliary is None
    assert len(starts) == 8
    position.eval().begin_pass(False)
    still = position.encodings.encoder(position.encodings.coordinates(torch.arange(20)))
    assert torch.allclose(position.rows(torch.arange(20))[0], still, atol=1e-6)


def test_shifts_come_as_often_as_asked():
    position, shifted = learner(shift=0.1, contrast=0, transfer=0), 0
    with torch.no_grad():
        for _ in range(300):
            position.begin_pass(True)
            position.rows(torch.arange(2))
            shifted += bool(position.encodings.start.any())
    assert 12 <= shifted <= 52  # four deviations around 30


def test_training_brings_similarity_nearer_to_distance():
    position = learner(width=64, contrast=1.0, shift=0)
    assert isinstance(position.encodings, Encodings)
    optimizer, found = torch.optim.Adam(position.parameters(), 3e-3), []
    for _ in range(100):
        position.bias(torch.arange(16), torch.arange(16), 2)
        loss = auxiliary_loss(position)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert sum(found[-10:]) < 0.9 * sum(found[:10])
