import pytest
import torch

from lengthwise.positions.fire import FIRE
from lengthwise.positions.randomised import Draw
from lengthwise.systems import length_generalization
from lengthwise.systems.length_generalization import ARMS, accuracy, build, train
from lengthwise.systems.system import Run
from lengthwise.tasks.addition import HINT
from tests.stepping import in_pieces


@pytest.fixture
def small(monkeypatch):
    for name, value in {"STEPS": 2, "BATCH": 2, "SUMS": 4, "DRAWS": 2, "TESTED": (6, 8)}.items():
        monkeypatch.setattr(length_generalization, name, value)


def test_every_figure_is_measured(small, monkeypatch):
    told = []
    run = Run(seeds=(10, 11), progress=lambda _, fraction: told.append(fraction))
    monkeypatch.setattr(length_generalization, "SUMS", 1)
    monkeypatch.setattr(length_generalization, "DRAWS", 1)
    figures = list(length_generalization.reproduce(run))
    assert len(figures) == 5 * 2 + 1 + 3
    assert [figure.holds for figure in figures[-3:]] == [False, False, False]
    assert told == sorted(told)
    assert told[-1] == 1


def test_the_decoder_has_fire_of_its_own_in_each_layer_and_one_list():
    model = build(ARMS["reversed with hints"])
    fires = [module for module in model.modules() if isinstance(module, FIRE)]
    (draw,) = (module for module in model.modules() if isinstance(module, Draw))
    assert len(fires) == 4
    assert {fire.length for fire in fires} == {32}
    assert draw.length == 256


def test_every_arm_has_room_for_the_longest_sums():
    for task in ARMS.values():
        longest = task.of_digits(max(length_generalization.TESTED))
        example = longest.batch(64, seed=0)
        assert longest.length < 256
        if task.hints:
            trained = torch.cat([task.of_digits(6).batch(64, seed=seed).tokens.unique() for seed in range(20)])
            assert set(range(HINT, HINT + 14)) <= set(trained.tolist())
            assert int(example.tokens.max()) < task.vocab_size


def test_answers_are_judged_at_positions_drawn_for_their_length(small):
    """A model's answers depend on the list, and each part of the sums has its own."""
    task = ARMS["reversed without hints"]
    model = train(task, 10, steps=1)
    draw = next(module for module in model.modules() if isinstance(module, Draw))
    orders, decoded = [], type(task).decoded

    def watched(self, model, example):
        orders.append((draw.longest, tuple(draw.order.tolist())))
        return decoded(self, model, example)

    type(task).decoded = watched
    try:
        assert 0 <= accuracy(model, task, 7) <= 1
    finally:
        type(task).decoded = decoded
    assert [longest for longest, _ in orders] == [task.length_of(7)] * 2
    assert len({order for _, order in orders}) == 2


@torch.no_grad()
def test_decoding_from_the_state_is_the_whole_pass():
    torch.manual_seed(10)
    task = ARMS["reversed with hints"].of_digits(5)
    model = build(task).double().eval()
    next(module for module in model.modules() if isinstance(module, Draw)).longest = task.length
    tokens = task.batch(3, seed=0).tokens
    prompt = tokens.shape[1] - task.asked_of(5) + 1
    logits, _ = in_pieces(model, tokens, range(prompt, tokens.shape[1]))
    torch.testing.assert_close(logits, model(tokens)[0])


def test_seeds_begin_with_different_weights(small):
    first, again, other = (train(ARMS["standard with hints"], seed, steps=1).head.weight for seed in (10, 10, 11))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
