import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.models.build import build, build_position
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.alibi import ALiBi
from lengthwise.positions.fire import FIRE
from lengthwise.positions.learned import Learned
from lengthwise.positions.randomised import Draw, Randomised
from lengthwise.positions.rope import RoPE
from tests.stepping import in_pieces

SIZES = st.integers(1, 60).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))


@given(sizes=SIZES, seed=st.integers(0, 2**40))
def test_evaluation_has_a_fixed_list_of_different_sorted_positions(sizes, seed):
    length, tokens = sizes
    draw = Draw(length, tokens, seed).eval()
    places = draw.places(torch.arange(tokens))
    assert (places.diff() > 0).all()
    assert places[0] >= 0
    assert places[-1] < length
    assert torch.equal(places, Draw(length, tokens, seed).eval().places(torch.arange(tokens)))
    assert torch.equal(draw.places(torch.tensor([tokens - 1, 0])), places[[-1, 0]])


@given(sizes=SIZES, seed=st.integers(0, 2**40))
def test_training_draws_for_the_tokens_of_the_pass(sizes, seed):
    length, tokens = sizes
    torch.manual_seed(seed)
    draw = Draw(length, 1, 0)
    draw.begin_pass()
    places = draw.places(torch.arange(tokens))
    assert (places.diff() > 0).all()
    assert places[0] >= 0
    assert places[-1] < length
    assert torch.equal(draw.places(torch.arange(tokens)), places)


@given(length=st.integers(1, 60), training=st.booleans())
def test_as_many_positions_as_tokens_are_the_true_ones(length, training):
    draw = Draw(length, length, 3).train(training)
    assert torch.equal(draw.places(torch.arange(length)), torch.arange(length))


def test_every_set_of_positions_is_as_likely():
    """Pairs out of 5: ten sets, each in a tenth of the passes."""
    torch.manual_seed(0)
    draw, passes = Draw(5, 5, 0), 4000
    found = torch.zeros(5, 5)
    for _ in range(passes):
        draw.begin_pass()
        found[tuple(draw.places(torch.arange(2)))] += 1
    shares = found[torch.triu_indices(5, 5, 1).unbind()] / passes
    assert found.tril().sum() == 0
    assert (shares - 0.1).abs().max() < 5 * (0.1 * 0.9 / passes) ** 0.5


def test_passes_in_training_differ_and_evaluation_stays():
    draw = Draw(1000, 20, 0)
    places = []
    for training in (True, True, False, False):
        draw.train(training).begin_pass()
        places.append(draw.places(torch.arange(20)).tolist())
    assert places[0] != places[1]
    assert places[2] == places[3]
    assert places[2] not in places[:2]


def test_a_pass_draws_for_its_longest_document_and_no_more():
    draw = Draw(9, 9, 0)
    draw.begin_pass()
    documents = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]])
    places = draw.places(documents)
    assert torch.equal(places[0, :3], places[0, [3, 4, 2]])
    assert torch.equal(places[1, :3], places[0, :3])
    assert int((draw.drawn < 9).sum()) == 4


def test_more_tokens_than_positions_are_refused():
    draw = Draw(9, 4, 0)
    with pytest.raises(InputError, match="length=10"):
        draw.places(torch.arange(10))
    with pytest.raises(InputError, match="longest=5"):
        draw.eval().places(torch.arange(5))
    with pytest.raises(InputError, match="length=10"):
        draw.places(torch.arange(10))
    with pytest.raises(InputError, match="fractions"):
        draw.places(torch.tensor([0.5]))
    draw.train().begin_pass()
    draw.places(torch.arange(3))
    with pytest.raises(InputError, match="in pieces"):
        draw.places(torch.arange(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"longest": 0}, "at least 1"), ({"longest": 65}, "at most length=64"), ({"position": None}, "randomised\\(")],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Randomised(**{"position": ALiBi(), "length": 64, **arguments})


@pytest.mark.parametrize("position", [ALiBi(), RoPE(), FIRE(heads=4), Learned(8, length=64)], ids=type)
def test_what_it_is_for_is_given_the_drawn_positions(position):
    randomised = Randomised(position, length=64, longest=12).eval()
    drawn, true = randomised.draw.places(torch.arange(12)), torch.arange(12)
    assert randomised.hooks == position.hooks
    assert randomised.per_layer == position.per_layer
    x, q = torch.randn(2, 12, 8), torch.randn(2, 12, 4, 2)
    assert torch.equal(randomised.embed(x, true), position.embed(x, drawn))
    for ours, theirs in zip(randomised.rotate(q, q, true, true), position.rotate(q, q, drawn, drawn), strict=True):
        assert torch.equal(ours, theirs)
    if position.has("bias"):
        ours, theirs = randomised.bias(true[7:], true, 4), position.bias(drawn[7:], drawn, 4)
        assert torch.equal(ours.written(), theirs.written())


@pytest.mark.parametrize("training", [True, False])
def test_with_no_more_positions_than_tokens_fire_is_plain_fire(training):
    torch.manual_seed(0)
    position = FIRE(heads=4, length=5)
    randomised = Randomised(position, length=30, longest=30).train(training)
    places = torch.arange(30)
    assert torch.equal(randomised.bias(places, places, 4).written(), position.bias(places, places, 4).written())


def test_layers_share_the_list_and_have_weights_of_their_own():
    model = LanguageModel(11, 16, "2*attention(heads=2)", position="randomised(fire(heads=2), length=64)")
    first, second = (branch.part.position for branch in model.stack.layers)
    assert first.draw is second.draw
    assert first.position is not second.position
    assert not torch.equal(first.position.hidden_weight, second.position.hidden_weight)
    tokens = torch.randint(11, (2, 20))
    model(tokens)
    once = first.draw.drawn
    model(tokens)
    assert not torch.equal(once, second.draw.drawn)
    again = copy.deepcopy(model)
    assert len({id(module) for module in again.modules() if isinstance(module, Draw)}) == 1


def test_shared_encodings_stay_one_object():
    model = LanguageModel(11, 16, "2*attention(heads=2)", position="randomised(t5(heads=2), length=64)")
    first, second = (branch.part.position for branch in model.stack.layers)
    assert first is second


def test_expressions_hand_the_heads_to_what_is_wrapped():
    attention = build("attention(heads=4, position=randomised(fire(length=16), length=256, longest=50))", dim=16)
    assert (attention.position.position.heads, attention.position.position.length) == (4, 16)
    assert (attention.position.draw.length, attention.position.draw.longest) == (256, 50)
    assert build_position("randomised(position=rope(base=100))", 16).position.base == 100


@pytest.mark.parametrize("position", ["fire(heads=2)", "rope", "learned(length=64)"])
@settings(max_examples=10, deadline=None)
@given(cuts=st.sets(st.integers(1, 29)), seed=st.integers(0, 99))
def test_generation_in_pieces_is_the_whole(position, cuts, seed):
    torch.manual_seed(seed)
    expression = f"randomised({position}, length=64, longest=30, seed={seed})"
    model = LanguageModel(11, 16, "2*(attention(heads=2) + mlp)", position=expression).double().eval()
    tokens = torch.randint(11, (2, 30))
    whole, _ = model(tokens)
    torch.testing.assert_close(in_pieces(model, tokens, sorted(cuts))[0], whole)


def test_documents_of_a_row_are_as_they_are_alone():
    torch.manual_seed(0)
    model = LanguageModel(11, 16, "2*attention(heads=2)", position="randomised(fire(heads=2), length=64)").eval()
    tokens = torch.randint(11, (1, 12))
    packed, _ = model(tokens, layout=Layout.packed([[5, 7]]))
    torch.testing.assert_close(packed[:, :5], model(tokens[:, :5])[0])
    torch.testing.assert_close(packed[:, 5:], model(tokens[:, 5:])[0])


def test_the_list_is_saved_with_the_model(tmp_path):
    model = LanguageModel(11, 16, "2*attention(heads=2)", position="randomised(fire(heads=2), length=64)")
    draw = next(module for module in model.modules() if isinstance(module, Draw))
    draw.redraw(77)
    model.save(tmp_path)
    tokens = torch.randint(11, (1, 16))
    assert torch.equal(lw.load(tmp_path).eval()(tokens)[0], model.eval()(tokens)[0])
