import pytest
import torch
from torch.nn import functional

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.combiner import Combiner
from lengthwise.models.build import build
from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.states import load_state, save_state
from lengthwise.ops.combiner import combiner_reference
from tests.stepping import token_by_token
from tests.stirred import stir

FORMS = ["fixed", "logsparse", "axial", "mixture"]


def stirred(form="fixed", dim=8, **settings):
    torch.manual_seed(0)
    sizes = {} if form == "logsparse" else {"segment": 4}
    return stir(Combiner(dim, **{"form": form, "heads": 2, **sizes, **settings}).double())


def projected(mixer, x):
    """The key of a summary seen from a point."""
    p = dict(mixer.named_parameters())

    def key(summary, weighted, point):
        mixed = summary.flatten(1) @ p["summary_in.weight"].T + x[:, point]
        mixed = (mixed - mixed.mean(-1, keepdim=True)) / (mixed.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        mixed = mixed * p["summary_norm.weight"] + p["summary_norm.bias"]
        return (mixed @ p["summary_out.weight"].T).unflatten(-1, (2, -1))

    return key


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [32, 21, 3])
def test_equals_the_formulas(form, length):
    mixer, x = stirred(form), torch.randn(2, length, 8, dtype=torch.float64)
    p = dict(mixer.named_parameters())
    q, k, v = ((x @ p[f"{name}_proj.weight"].T).unflatten(-1, (2, 4)) for name in "qkv")
    key = projected(mixer, x) if form == "axial" else None
    o = combiner_reference(q, k, v, form, 4, summary_key=key)
    torch.testing.assert_close(mixer(x)[0], o.flatten(2) @ p["o_proj.weight"].T, rtol=0, atol=1e-10)


def test_keys_of_summaries_differ():
    x = torch.randn(1, 13, 8, dtype=torch.float64)
    ways = [stirred("axial", summary_key=way) for way in ("projected", "own", "weighted")]
    for way in ways[1:]:
        way.load_state_dict(ways[0].state_dict(), strict=False)
    outputs = [way(x)[0] for way in ways]
    for other in outputs[1:]:
        assert torch.equal(other[:, :4], outputs[0][:, :4])
        assert (other[:, 4:] - outputs[0][:, 4:]).abs().max() > 1e-3
    assert (outputs[1] - outputs[2]).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_the_state_is_what_the_formula_says(form):
    mixer, size = stirred(form), 4
    for length in range(23):
        _, state = mixer(torch.randn(3, length, 8, dtype=torch.float64))
        assert state.nbytes == 3 * mixer.state_nbytes(length)
        finished, place = divmod(length, size)
        numbers = {
            "fixed": 2 * (place + finished) + (place > 0),
            "logsparse": 2 * length + 3 * f"{length:b}".count("1"),
            "axial": 3 * place + place + 2 * finished * size,  # the inputs are as wide as all heads together
            "mixture": 3 * place + (6 * size - 4) * finished + 3 * size * (finished > 0),
        }
        assert mixer.state_nbytes(length) == 8 * 8 * numbers[form]


def test_fixed_keeps_less_than_all_keys():
    mixer, dense = Combiner(64, segment=64), build("attention", dim=64)
    assert dense.state_nbytes(4095) / mixer.state_nbytes(4095) > 32


@pytest.mark.parametrize("form", FORMS)
def test_a_decoded_token_copies_no_past(form):
    mixer = stirred(form, **({} if form == "logsparse" else {"segment": 512}))
    with torch.no_grad():
        _, state = mixer(torch.randn(1, 1024 + 200, 8, dtype=torch.float64))
        places = set()
        for _ in range(40):
            _, state = mixer(torch.randn(1, 1, 8, dtype=torch.float64), state)
            kept = state.tokens if form == "logsparse" else state.open
            places.add(kept.tensors[0].untyped_storage().data_ptr())
    assert len(places) <= 2  # the one it came with, and one with room


def test_both_ways_padding_is_in_no_summary():
    mixer = stirred(causal=False)
    x = torch.randn(2, 14, 8, dtype=torch.float64)
    y, state = mixer(x, None, Layout.padded([14, 9], "right"))
    assert state is None
    torch.testing.assert_close(y[1, :9], mixer(x[1:, :9])[0][0], rtol=0, atol=1e-12)
    far = functional.pad(x[1:, :9], (0, 0, 0, 5), value=100.0)
    same, _ = mixer(torch.cat([x[:1], far]), None, Layout.padded([14, 9], "right"))
    torch.testing.assert_close(same[1, :9], y[1, :9], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_is_saved(form, tmp_path):
    mixer, x = stirred(form), torch.randn(2, 18, 8, dtype=torch.float64)
    _, state = mixer(x[:, :14], None, Layout.packed([[5, 9], [14]]))
    save_state(state, tmp_path / "state")
    again, _ = load_state(tmp_path / "state")
    assert torch.equal(mixer(x[:, 14:], again)[0], mixer(x[:, 14:], state)[0])


@pytest.mark.parametrize("form", FORMS)
def test_in_models(form):
    segment = "" if form == "logsparse" else ", segment=4"
    layers = f"2*(combiner(heads=2, form={form}{segment}) + mlp)"
    tokens = torch.randint(0, 11, (2, 19))
    model = LanguageModel(11, 16, layers, position="rope").double()
    logits, _ = model(tokens)
    torch.testing.assert_close(token_by_token(model, tokens)[0], logits, rtol=0, atol=1e-10)


def test_in_encoders():
    tokens = torch.randint(0, 11, (2, 19))
    assert Encoder(11, 16, "combiner(segment=4) + mlp")(tokens)[0].shape == (2, 19, 16)
    with pytest.raises(InputError, match="bidirectional"):
        Encoder(11, 16, "combiner(form=axial) + mlp")


def test_bad_input():
    for expression, message in [
        ("combiner(form=fix)", "fixed"),
        ("combiner(segment=0)", "at least 1 token, got 0"),
        ("combiner(form=logsparse, segment=4)", "has no segments"),
        ("combiner(form=axial, summary_key=owned)", "own"),
        ("combiner(form=axial, causal=false)", "is causal"),
        ("combiner(position=t5)", "use rope"),
        ("combiner(heads=3)", "divide"),
    ]:
        with pytest.raises(InputError, match=message):
            build(expression, dim=8)
