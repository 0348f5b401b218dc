import math
import statistics

import pytest
import torch

from lengthwise.systems import experiments
from lengthwise.systems.experiments import (
    BOS,
    bits_per_byte,
    byte_batches,
    corpus,
    initialise,
    nll,
    nll_and_rise,
    nll_by_position,
    nll_of,
    of_each,
    parameters,
    progress,
    rise,
    train_bytes,
    train_each,
    validation_windows,
    variants,
)
from lengthwise.systems.system import Run

TINY = {"layers": "attention(heads=2) + mlp", "dim": 16, "length": 16, "batch": 4, "warmup": 5}


def test_training_and_validation_share_no_file():
    train, held_out = corpus()
    assert not {d.name for d in train.documents} & {d.name for d in held_out.documents}
    assert len(train) > 5 * len(held_out)


def test_the_byte_that_begins_does_not_occur_in_the_text():
    assert not any((document.tokens == BOS).any() for part in corpus() for document in part.documents)


def test_batches_depend_on_the_seed_alone():
    first, again, other = (next(byte_batches(8, 3, seed)) for seed in (5, 5, 6))
    assert first.shape == (3, 9)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_beginning_takes_the_place_of_a_byte():
    tokens = next(byte_batches(8, 3, 0, bos=True))
    assert tokens.shape == (3, 9)
    assert (tokens[:, 0] == BOS).all()
    assert (tokens[:, 1:] != BOS).all()


def test_windows_of_all_lengths_end_at_the_same_bytes():
    long, short = validation_windows(512, 7), validation_windows(64, 7)
    assert long.shape == (7, 513)
    assert torch.equal(long[:, -65:], short)
    assert torch.equal(validation_windows(64, 7, bos=True)[:, 1:], short[:, 1:])


def test_variants_begin_with_the_same_weights():
    untrained = {"steps": 0, **TINY}
    plain, learned = (train_bytes(position=p, **untrained).state_dict() for p in ("none", "learned"))
    assert set(plain) < set(learned)
    assert all(torch.equal(weight, learned[name]) for name, weight in plain.items())


def test_initial_weights_have_the_deviation_asked_for():
    torch.manual_seed(0)
    layer = torch.nn.Linear(200, 200)
    initialise(layer, 0.3)
    torch.testing.assert_close(layer.weight.std().item(), 0.3, rtol=0.03, atol=0)
    assert not layer.bias.any()


def test_training_teaches():
    seen = []
    untrained = train_bytes(steps=0, **TINY)
    trained = train_bytes(steps=60, learning_rate=1e-2, on_step=lambda step, loss: seen.append(loss), **TINY)
    assert abs(nll(untrained, 16, last=8, windows=20) - math.log(256)) < 0.1
    assert nll(trained, 16, last=8, windows=20) < 4.0
    assert len(seen) == 60
    assert not trained.training


def test_the_mean_of_the_last_positions():
    model = train_bytes(steps=0, **TINY)
    by_position = nll_by_position(model, 12, windows=5)
    assert by_position.shape == (12,)
    assert math.isclose(nll(model, 12, last=4, windows=5), float(by_position[-4:].mean()), rel_tol=1e-6)


def test_bits_are_those_of_every_byte_but_the_first():
    model = train_bytes(steps=0, **TINY)
    tokens = validation_windows(12, 7)
    losses = nll_of(model, tokens)
    assert losses.shape == (7, 12)
    with torch.no_grad():
        chosen = model(tokens[:, :-1])[0].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(losses, -chosen)
    assert bits_per_byte(model, tokens) == pytest.approx(float(losses.mean()) / math.log(2))
    assert nll_by_position(model, 12, windows=7).tolist() == pytest.approx(losses.mean(0).tolist())


def test_parameters_are_counted_once():
    layer = torch.nn.Linear(3, 4)
    assert parameters(torch.nn.Sequential(layer, layer)) == 16


def test_progress_counts_the_steps_of_all():
    told = []
    tell = progress(Run(progress=lambda text, fraction: told.append((text, fraction))), 4)
    for name in ("a", "b"):
        on_step = tell(name)
        on_step(0, 2.0)
        on_step(1, 1.0)
    assert told == [("a: loss 2.000", 0.25), ("a: loss 1.000", 0.5), ("b: loss 2.000", 0.75), ("b: loss 1.000", 1.0)]


def test_variants_are_averaged_over_seeds_and_report_their_progress():
    fractions = []
    run = Run(progress=lambda text, fraction: fractions.append(fraction))

    def job(offset: float):
        def measure(seed: int, on_step) -> float:
            on_step(0, 1.0)
            on_step(1, 1.0)
            return seed + offset

        return measure

    assert variants(run, {"a": job(0), "b": job(10)}, (1, 2), steps=2) == {"a": 1.5, "b": 11.5}
    assert fractions == [n / 8 for n in range(1, 9)]


def test_every_kind_is_trained_with_every_seed():
    fractions = []
    run = Run(progress=lambda text, fraction: fractions.append(fraction))
    kinds = {"a": {"position": "rope", **TINY}, "b": {"position": "alibi", **TINY}}
    models = train_each(run, kinds, (1, 2), steps=2)
    assert fractions == [n / 8 for n in range(1, 9)]
    again = train_bytes(position="alibi", seed=2, steps=2, **TINY)
    for name, weight in models["b"][1].state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_measures_are_averaged_over_the_models_of_a_kind():
    models = {"a": [1, 2, 6], "b": [4]}
    assert of_each(models, lambda m: {"half": m / 2, "square": m * m}) == {
        "a": {"half": 1.5, "square": 41 / 3},
        "b": {"half": 2, "square": 16},
    }
    assert of_each(models, lambda m: {"half": m / 2}, statistics.median)["a"] == {"half": 1}


def test_a_rise_is_counted_from_the_trained_length():
    model = train_bytes(position="rope", steps=0, **TINY)
    assert rise(model, 64) == 0
    assert rise(model, 128) == nll(model, 128) - nll(model, 64)
    assert nll_and_rise(model, (64, 96, 128)) == {
        **{str(n): nll(model, n) for n in (64, 96, 128)},
        "rise": rise(model, 128),
    }
    assert rise(model, 600, trained=32) == nll(model, 600, longest=600) - nll(model, 32, longest=600)


def test_the_harness_is_the_one_of_the_sheets():
    model = train_bytes(position="rope", steps=0)
    assert sum(p.numel() for p in model.parameters()) == 231_808
    assert model.config["layers"] == experiments.DECODER
