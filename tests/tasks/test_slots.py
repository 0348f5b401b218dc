"""What the slot tasks ask for. The laws of every task are in test_task."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.tasks.slots import SlotQuestion, SlotRecall, SlotText, transitions, walk


def check_answers(task, tokens, targets, mask):
    """Every type is shown once, and each prompt's answer is the value beside its type."""
    slots = [t for t in tokens.tolist() if t < task.prompts.start]
    shown = dict(divmod(t, task.values) for t in slots)
    assert sorted(shown) == list(range(task.types))
    assert len(slots) == task.types
    asked = tokens[mask] - task.prompts.start
    assert len(set(asked.tolist())) == len(asked) == task.questions
    assert [shown[int(a)] for a in asked] == (targets[mask] - task.answers.start).tolist()


@settings(max_examples=20, deadline=None)
@given(extra=st.integers(0, 60), seed=st.integers(0, 999))
@pytest.mark.parametrize("kind", [SlotRecall, SlotQuestion, SlotText])
def test_prompts_ask_for_the_value_of_their_type(kind, extra, seed):
    task = kind()
    example = task.batch(3, length=task.shortest + extra, seed=seed)
    for row in zip(example.tokens, example.targets, example.mask, strict=True):
        check_answers(task, *row)


def test_slots_of_the_default_size_lie_far_back():
    example = SlotRecall().batch(50, seed=0)
    slots = example.tokens < 256
    assert slots.sum(1).eq(32).all()
    assert not slots[:, 128:].any()
    assert example.mask[:, 224:].all()
    assert SlotRecall().vocab_size == 256 + 32 + 8 + 64


def test_a_question_comes_first_and_is_marked():
    task = SlotQuestion()
    example = task.batch(20, seed=0)
    layout = task.layout(example)
    assert layout.padding.sum(1).eq(15).all()
    assert not layout.padding[:, 15:].any()
    assert torch.equal(layout.marked, example.mask)
    assert example.mask.nonzero()[:, 1].eq(15).all()
    assert layout.positions[0, 14:17].tolist() == [0, 0, 1]


def test_a_model_is_told_the_layout():
    task, seen = SlotQuestion(), []

    class Model(torch.nn.Module):
        def forward(self, tokens, layout):
            seen.append(layout.padding.sum().item())
            return torch.zeros(*tokens.shape, task.vocab_size), None

    model = Model()
    assert task.objective(model, task.batch(2)).item() == pytest.approx(np.log(8), rel=1e-5)  # values alone
    task.score(model, examples=3)
    assert seen == [30, 45]


def test_only_values_can_be_answered():
    task, logits = SlotRecall(), torch.randn(1, 2, SlotRecall().vocab_size)
    answers = logits[..., task.answers.start : task.answers.stop]
    assert torch.equal(task.of_answers(logits).argmax(-1), task.answers.start + answers.argmax(-1))
    torch.testing.assert_close(task.of_answers(logits).logsumexp(-1), answers.logsumexp(-1))


def test_a_text_is_laid_out_as_described():
    task = SlotText()
    example = task.batch(40, seed=0)
    tokens, noise = example.tokens, torch.tensor(task.noises)
    assert (tokens[:, 0:32:2] < 128).all()
    assert torch.isin(tokens[:, 1:32:2], noise).all()
    assert torch.isin(tokens[:, 32:224], noise).all()
    assert torch.isin(tokens[:, 225::2], torch.tensor(task.answers)).all()
    assert torch.equal(example.targets[:, :-1], tokens[:, 1:])
    assert torch.equal(example.mask.nonzero()[:16, 1], torch.arange(224, 256, 2))
    assert torch.isin(example.targets[task.is_noise(example)], noise).all()
    assert task.is_noise(example).sum(1).eq(192).all()


def test_the_noise_of_a_text_is_as_predictable_as_its_chain():
    """A model that knows the chain has its entropy as nats on the noise: 192 · 300 tokens, so ± 0.01."""
    task = SlotText()
    example = task.batch(300, seed=3)
    logits = torch.full((*example.tokens.shape, task.vocab_size), -torch.inf)
    chain = torch.from_numpy(transitions(task.noise)).float().log()
    before = example.tokens - task.noises.start
    logits[..., task.noises.start :] = chain[before.clamp_min(0)]
    assert task.nats(logits, example) == pytest.approx(task.entropy, abs=0.02)


def test_a_walk_follows_its_chain():
    chain = np.array([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    steps = walk(np.random.default_rng(0), chain, 400, 50)
    before, after = steps[:, :-1].ravel(), steps[:, 1:].ravel()
    assert (after[before == 1] == 2).all()
    assert (after[before == 2] == 0).all()
    assert np.mean(after[before == 0] == 1) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlotRecall(types=0), "types"),
        (lambda: SlotRecall(within=31), "within must be at least 32"),
        (lambda: SlotRecall(questions=33), "must be at least 33, got 32"),
        (lambda: SlotQuestion(places=0), "places"),
        (lambda: SlotText(noise=0), "noise"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
