import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.generation.sample import generate
from lengthwise.generation.sampling import Sampling
from lengthwise.models import LanguageModel

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))


def model(**changes):
    torch.manual_seed(0)
    return LanguageModel(**{"vocab_size": 256, "dim": 16, "layers": "min_gru + swiglu", **changes})


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.0), [0, 1, 0, 0]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares of the probabilities
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_p=0.65), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(top_p=1e-9), [0, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),  # of 9 shares, 4 are not enough and 7 are
    ],
)
def test_the_distribution_that_tokens_are_drawn_from(sampling, expected):
    assert sampling.probabilities(LOGITS).tolist() == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=12),
    st.floats(0, 5),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(1e-3, 1),
)
def test_a_distribution_sums_to_one_and_keeps_the_likeliest(logits, temperature, top_k, top_p):
    z = torch.tensor(logits, dtype=torch.float64)
    p = Sampling(temperature, top_k, top_p).probabilities(z)
    assert p.sum().item() == pytest.approx(1)
    assert p[z.argmax()] > 0
    assert int((p > 0).sum()) <= (top_k or len(logits))


@pytest.mark.parametrize(
    "setting", [{"temperature": -1}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        Sampling(**setting)


def test_the_same_seed_gives_the_same_tokens_and_another_does_not():
    net = model()
    first, second, other = (list(generate(net, "ab", max_tokens=30, seed=seed)) for seed in (5, 5, 6))
    assert first == second
    assert first != other
    assert len(first) == 30


def test_greedy_tokens_are_those_of_reading_everything_anew():
    net = model().double()
    tokens = list(b"abc")
    for token in generate(net, b"abc", max_tokens=12, temperature=0.0):
        logits, _ = net(torch.tensor([tokens]))
        assert token == int(logits[0, -1].argmax())
        tokens.append(token)
    assert len(tokens) == 15


def test_the_likeliest_token_is_taken_without_drawing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert Sampling(temperature=0.0).choose(LOGITS, generator) == 1
    assert torch.equal(generator.get_state(), before)
    Sampling().choose(LOGITS, generator)
    assert not torch.equal(generator.get_state(), before)
    with pytest.raises(InputError, match="not finite"):
        Sampling(temperature=0.0).choose(torch.tensor([0.0, math.nan]), generator)


def test_prompts_of_every_kind_are_the_same_prompt():
    net = model()
    kinds = ["hé", "hé".encode(), list("hé".encode()), torch.tensor(list("hé".encode()))]
    found = [list(generate(net, prompt, max_tokens=8, seed=0)) for prompt in kinds]
    assert found == [found[0]] * 4


def test_going_on_from_a_state_is_going_on_from_what_was_read_and_does_not_change_it():
    net = model().double()
    _, state = net(torch.tensor([list(b"once upon ")]))
    first, second = (list(generate(net, b"a time", max_tokens=9, seed=1, state=state)) for _ in range(2))
    assert first == second == list(generate(net, b"once upon a time", max_tokens=9, seed=1))


def test_tokens_come_one_at_a_time_and_the_model_is_left_as_it_was():
    net = model().train()
    stream = generate(net, "a", max_tokens=10**9, seed=0)
    assert [next(stream) for _ in range(3)] == list(generate(net, "a", max_tokens=3, seed=0))
    assert net.training
    net(torch.tensor([[1, 2, 3]]))[0].sum().backward()


def test_dropout_is_off_while_generating():
    net = model()
    net.norm = torch.nn.Sequential(net.norm, torch.nn.Dropout(0.9))
    net.train()
    first, second = (list(generate(net, "a", max_tokens=9, temperature=0.0)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("", {}, "at least one token"),
        ([1, 256], {}, "token 256 is outside the model's vocabulary of 256"),
        ([-1], {}, "token -1"),
        ("a", {"max_tokens": -1}, "max_tokens"),
    ],
)
def test_what_cannot_be_continued_is_refused_at_once(prompt, settings, message):
    with pytest.raises(InputError, match=message):
        generate(model(), prompt, **settings)


def test_a_model_that_diverged_is_said():
    net = model()
    with torch.no_grad():
        net.head.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        list(generate(net, "a"))
