import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.mamba2 import Mamba2
from lengthwise.mixers.state_control import Forget, Normalise, Window
from lengthwise.models.build import build
from lengthwise.ops.linear_attention import linear_attention_reference

LENGTH, WINDOW = 50, 7


@pytest.fixture
def mixer():
    torch.manual_seed(0)
    return Mamba2(8, state_dim=6, head_dim=4, groups=2).double()


def inputs(length=LENGTH, dtype=torch.float64, scale=1.0):
    """q and k of two groups, v of four heads, and their log decay."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(2, length, *s, generator=generator, dtype=dtype) for s in ((2, 6), (2, 6), (4, 3), (4,)))
    return q, k * scale, v, -0.2 * g.abs()


UNCHANGING = [Forget(), Normalise(limit=torch.inf), Window(LENGTH), Window(2 * LENGTH)]


@pytest.mark.parametrize("control", UNCHANGING, ids=lambda c: type(c).__name__)
def test_a_control_that_asks_for_nothing_changes_nothing(mixer, control):
    x = torch.randn(2, LENGTH, 8, dtype=torch.float64)
    expected, _ = mixer(x)
    mixer.control(control)
    assert torch.equal(mixer(x)[0], expected)


@pytest.mark.parametrize(("decay", "insertion"), [(2.0, 1.0), (1.0, 0.5), (0.0, 3.0)])
def test_forgetting_raises_the_decay_to_a_power_and_scales_what_is_written(decay, insertion):
    q, k, v, g = inputs()
    expected, state = torch.zeros(2, 4, 6, 3, dtype=torch.float64), None
    expected, state = linear_attention_reference(q, k * insertion, v, (g.exp() ** decay).log())
    o, memory = Forget(decay=decay, insertion=insertion).run((q, k, v, g), None, None)
    torch.testing.assert_close(o, expected)
    torch.testing.assert_close(memory, state)


@pytest.mark.parametrize("every", [1, 5, 50, 128])
def test_normalisation_shrinks_heads_above_their_limit(every):
    q, k, v, g = inputs()
    limit = torch.tensor([0.5, 2.0, 5.0, torch.inf], dtype=torch.float64)
    state, outputs = None, []
    for t in range(LENGTH):
        o, state = linear_attention_reference(*(x[:, t : t + 1] for x in (q, k, v, g)), state)
        outputs.append(o)
        if (t + 1) % every == 0:
            norm = state.flatten(2).norm(dim=-1)
            state = state * torch.minimum(torch.ones_like(norm), limit / norm)[..., None, None]
    o, memory = Normalise(limit=limit, every=every).run((q, k, v, g), None, None)
    torch.testing.assert_close(o, torch.cat(outputs, 1))
    torch.testing.assert_close(memory.S, state)


@pytest.mark.parametrize("window", [1, 2, WINDOW, 49])
def test_a_window_is_a_fresh_run_over_its_inputs(window):
    given = inputs()
    o, _ = Window(window).run(given, None, None)
    for t in range(LENGTH):
        fresh, _ = linear_attention_reference(*(x[:, max(t + 1 - window, 0) : t + 1] for x in given))
        torch.testing.assert_close(o[:, t], fresh[:, -1])


def test_a_window_keeps_its_digits_where_the_whole_state_has_exploded():
    """The difference of two states of size 1e6 would be off by 0.1 in single precision."""
    q, k, v, g = inputs(dtype=torch.float32)
    g, v = torch.zeros_like(g), torch.cat([1e6 * v[:, :25], v[:, 25:]], 1)
    o, _ = Window(WINDOW).run((q, k, v, g), None, None)
    fresh, _ = linear_attention_reference(*(x[:, -WINDOW:] for x in (q, k, v, g)))
    torch.testing.assert_close(o[:, -1], fresh[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [0, 1, 3, 6, 7, 8, 20, 49, 50])
@pytest.mark.parametrize("control", [Window(WINDOW), Normalise(limit=0.1, every=6)], ids=lambda c: type(c).__name__)
def test_goes_on_from_any_cut_with_documents(mixer, control, cut):
    mixer.control(control)
    x = torch.randn(2, LENGTH, 8, dtype=torch.float64)
    layout = Layout.packed([[11, 39], [1, 30, 19]])
    whole, _ = mixer(x, None, layout)
    first, state = mixer(x[:, :cut], None, layout.slice(0, cut))
    second, _ = mixer(x[:, cut:], state, layout.slice(cut))
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    alone, _ = mixer(x[1:, 31:])
    torch.testing.assert_close(whole[1:, 31:], alone)


def test_gradients_through_a_window(mixer):
    mixer.control(Window(3))
    x = torch.randn(1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mixer(x)[0], x)


def test_an_expression_names_a_control():
    mixer = build("mamba2(state_dim=4, state_control=window(length=5))", dim=8)
    assert isinstance(mixer.state_control, Window)
    assert mixer.receptive_field == 5 + 3
    with pytest.raises(InputError, match="window"):
        build("mamba2(state_dim=4, state_control=windw(length=5))", dim=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0), "at least 1 token, got 0"),
        (lambda: Normalise(limit=0.0), "limit must be positive, got 0"),
        (lambda: Normalise(limit=1.0, every=0), "at least 1 token, got 0"),
        (lambda: Forget(decay=-1), "at least 0, got -1"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(InputError, match=message):
        make()
