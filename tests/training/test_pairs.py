"""Sources and targets in rows, and the loss of a model on them."""

import itertools

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.generation.sample import generate
from lengthwise.models import EncoderDecoder
from lengthwise.training.fit import fit
from lengthwise.training.pairs import Pairs, target_loss

BEGIN = 0


def model(layers="attention(heads=2)"):
    torch.manual_seed(0)
    return EncoderDecoder(9, 16, layers, "attention(heads=2) + cross_attention(heads=2) + mlp")


def draw(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 9, (n,), generator=generator) for n in lengths]


def reference(model, sources, targets):
    """The mean of − log p of every token, pair by pair."""
    nats = []
    for source, target in zip(sources, targets, strict=True):
        logits, _ = model(target[None, :-1], source=source[None])
        nats += [-logits[0].log_softmax(-1)[i, token] for i, token in enumerate(target[1:])]
    return torch.stack(nats).mean()


@pytest.mark.parametrize("rows", [None, [[0, 2], [3, 1]], [[2, 0, 1, 3]]])
def test_the_loss_is_that_of_every_pair_alone(rows):
    made = model().double()
    sources, targets = draw(4, 2, 5, 1), draw(3, 6, 1, 2, seed=1)
    loss = target_loss(made, Pairs.packed(sources, targets, rows))
    torch.testing.assert_close(loss, reference(made, sources, targets))


def test_an_empty_source_is_answered_in_a_row_of_its_own():
    made = model().double()
    sources, targets = draw(3, 0), draw(3, 2, seed=1)
    loss = target_loss(made, Pairs.packed(sources, targets))
    torch.testing.assert_close(loss, reference(made, sources, targets))
    with pytest.raises(InputError, match="empty source has no place"):
        Pairs.packed(sources, targets, [[0, 1]])


def test_what_makes_no_pair_is_one_clear_error():
    with pytest.raises(InputError, match="as many sources as targets, got 2 and 1"):
        Pairs.packed(draw(2, 3), draw(2))
    with pytest.raises(InputError, match="no target has a second token"):
        target_loss(model(), Pairs.packed(draw(2, 3), draw(1, 1)))


def reversals(seed, batch=32, longest=6):
    """Strings of 2 to `longest` symbols, to be written backwards; token 0 begins the answer and ends it."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        lengths = torch.randint(2, longest + 1, (batch,), generator=generator).tolist()
        sources = [torch.randint(1, 9, (n,), generator=generator) for n in lengths]
        ends = torch.tensor([BEGIN])
        yield Pairs.packed(sources, [torch.cat([ends, s.flip(0), ends]) for s in sources])


@pytest.mark.slow
def test_it_learns_to_write_backwards_and_to_stop():
    torch.manual_seed(10)
    made = EncoderDecoder(
        9,
        32,
        "2*(attention(heads=2) + mlp)",
        "2*(attention(heads=2) + cross_attention(heads=2) + mlp)",
        position="learned(length=16)",
    )
    losses = fit(made, reversals(10), steps=600, learning_rate=3e-3, warmup=50, loss=target_loss)
    assert losses[-1] < 0.2 < losses[0]
    right = 0
    for source in itertools.islice(draw(*[2, 3, 4, 5, 6] * 4, seed=11), 20):
        answer = generate(made, [BEGIN], source=source, temperature=0, max_tokens=len(source) + 1)
        right += list(answer) == [*source.flip(0).tolist(), BEGIN]
    assert right >= 18
