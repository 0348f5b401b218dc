from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lengthwise.caches import FullCache, SelectiveCache, WindowedCache
from lengthwise.contract import Layout, state_nbytes
from lengthwise.errors import InputError
from lengthwise.mixers.attention import Attention
from lengthwise.ops.backend import use
from lengthwise.ops.bias import Relative
from lengthwise.ops.fire_bias import FireBias
from lengthwise.ops.patterns import causal, first, window
from lengthwise.positions.alibi import ALiBi
from lengthwise.positions.fire import FIRE
from lengthwise.positions.rope import RoPE
from lengthwise.positions.t5 import T5
from tests.stepping import in_pieces, token_by_token

DIM = 24
KINDS = {
    "multi-head": {"heads": 4},
    "grouped": {"heads": 4, "kv_heads": 2, "position": RoPE()},
    "multi-query": {"heads": 4, "kv_heads": 1},
    "window": {"heads": 2, "window": 5, "position": RoPE()},
    "window of one": {"heads": 2, "window": 1},
    "window and first": {"heads": 4, "kv_heads": 2, "pattern": window(5) | first(3), "position": RoPE()},
    "first alone": {"heads": 2, "pattern": first(3)},
    "alibi": {"heads": 4, "position": ALiBi()},
    "alibi, window and first": {"heads": 4, "window": 9, "pattern": window(4) | first(2), "position": ALiBi()},
    "t5": {"heads": 4, "kv_heads": 2, "position": T5(heads=4)},
    "wide heads": {"heads": 3, "head_dim": 10, "bias": True},
}
LENGTHS = [[7, 1, 12], [3, 9, 5, 3]]


@pytest.fixture(params=KINDS)
def mixer(request):
    torch.manual_seed(0)
    mixer = Attention(DIM, **KINDS[request.param]).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return mixer


def inputs(batch=2, length=20):
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("layout", [None, Layout.packed(LENGTHS), Layout.padded([20, 13])])
def test_cuts_change_nothing(mixer, layout, gradients):
    x = inputs()
    with torch.set_grad_enabled(gradients):
        whole, _ = in_pieces(mixer, x, [], layout=layout)
        for cuts in (range(1, 20), [4, 4, 11], [6, 7, 8, 9], [2, 17]):
            torch.testing.assert_close(in_pieces(mixer, x, cuts, layout=layout)[0], whole)


def test_packed_equals_separate(mixer):
    x = inputs()
    packed, state = mixer(x, None, Layout.packed(LENGTHS))
    for r, row in enumerate(LENGTHS):
        begin = 0
        for length in row:
            alone, _ = mixer(x[r : r + 1, begin : begin + length])
            torch.testing.assert_close(packed[r : r + 1, begin : begin + length], alone)
            begin += length
    more = inputs(2, 6)
    y, _ = mixer(more, state)
    for r, row in enumerate(LENGTHS):
        last = torch.cat([x[r : r + 1, 20 - row[-1] :], more[r : r + 1]], 1)
        torch.testing.assert_close(y[r : r + 1], mixer(last)[0][:, -6:])


@pytest.mark.parametrize(
    ("position", "kind"), [(ALiBi(), Relative), (T5(heads=4), Relative), (FIRE(heads=4), FireBias)]
)
def test_packed_rows_are_counted_once_where_distances_are_all(position, kind):
    """The places of tokens in their documents differ from row to row, and a bias by distance is one table for all of
    them, in a first pass and behind a cache of documents that have ended."""
    torch.manual_seed(0)
    mixer, found = Attention(DIM, heads=4, position=position).double(), []
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    inner = mixer.attend
    mixer.attend = lambda *given, **how: found.append(how["bias"]) or inner(*given, **how)
    layout = Layout.packed(LENGTHS)
    x = inputs()
    packed, _ = in_pieces(mixer, x, [13], layout=layout)
    assert [type(bias) for bias in found] == [kind, kind]
    assert {bias.shape[0] for bias in found} == {1 if kind is Relative else 2}
    for r, row in enumerate(LENGTHS):
        ends = torch.tensor(row).cumsum(0).tolist()
        for begin, end in zip([0, *ends], ends, strict=False):
            alone, _ = mixer(x[r : r + 1, begin:end])
            torch.testing.assert_close(packed[r : r + 1, begin:end], alone)


def test_padding_on_the_left_is_ignored(mixer):
    x = inputs()
    layout = Layout.padded([20, 13])
    y, state = mixer(x, None, layout)
    torch.testing.assert_close(y[1:, 7:], mixer(x[1:, 7:])[0])
    y, _ = mixer(inputs(2, 3), state)
    torch.testing.assert_close(y[1:], mixer(torch.cat([x[1:, 7:], inputs(2, 3)[1:]], 1))[0][:, -3:])


def test_a_row_alone_gives_the_same(mixer):
    x = inputs()
    torch.testing.assert_close(mixer(x)[0][1:], mixer(x[1:])[0])


def test_equals_the_reference(mixer):
    x = inputs()
    fast, _ = in_pieces(mixer, x, [9])
    with use("reference"):
        slow, _ = in_pieces(mixer, x, [9])
    torch.testing.assert_close(fast, slow)


def test_the_state_grows_as_declared(mixer):
    for length in (1, 2, 4, 5, 20):
        _, state = in_pieces(mixer, inputs(1, length), [length // 2])
        assert state_nbytes(state) == mixer.state_nbytes(length)
    kinds = (WindowedCache, SelectiveCache) if mixer.growth == "window" else FullCache
    assert isinstance(state, kinds)
    with torch.no_grad():
        _, state = token_by_token(mixer, inputs(1, 20))
        assert state_nbytes(state) == mixer.state_nbytes(20)


def test_the_receptive_field_is_the_declared_one():
    mixer = Attention(DIM, heads=2, window=5).double()
    assert mixer.receptive_field == 5
    assert Attention(DIM, heads=2, pattern=window(5) | first(1)).receptive_field is None
    x = inputs(1).requires_grad_()
    mixer(x)[0][0, -1].sum().backward()
    assert x.grad.abs().sum(-1)[0].gt(0).tolist() == [False] * 15 + [True] * 5


def test_bidirectional_attention_reads_no_padding_and_keeps_nothing():
    for settings in ({"heads": 2}, {"heads": 2, "window": 3}, {"heads": 4, "position": ALiBi()}):
        mixer = Attention(DIM, causal=False, **settings).double()
        x = inputs()
        y, state = mixer(x, None, Layout.padded([20, 13], side="right"))
        torch.testing.assert_close(y[1:, :13], mixer(x[1:, :13])[0])
        assert state is None
        assert mixer.state_nbytes(20) == 0
        assert not torch.allclose(mixer(x)[0][:, 0], mixer(x[:, :1])[0][:, 0])


def test_copied_key_heads_change_nothing():
    """Multi-query attention is multi-head attention whose key and value maps are the same in every head, and the
    gradient of the one map is the sum of those of the copies."""
    torch.manual_seed(0)
    one, many = (Attention(DIM, heads=4, kv_heads=g).double() for g in (1, 4))
    weights = one.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        weights[name] = weights[name].repeat(4, 1)
    many.load_state_dict(weights)
    outputs = [mixer(inputs())[0] for mixer in (one, many)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for name in ("k_proj", "v_proj"):
        copies = getattr(many, name).weight.grad.unflatten(0, (4, -1)).sum(0)
        torch.testing.assert_close(getattr(one, name).weight.grad, copies)


def test_equals_the_closed_form():
    mixer = Attention(DIM, heads=2).double()
    x = inputs()
    q, k, v = (p(x).unflatten(-1, (2, 12)).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    o = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x)[0], mixer.o_proj(o))


def test_gradients_equal_finite_differences(mixer):
    x = inputs(1, 7).requires_grad_()
    names = [name for name, _ in mixer.named_parameters()]

    def function(x, *parameters):
        values = dict(zip(names, parameters, strict=True))
        y, state = torch.func.functional_call(mixer, values, (x[:, :4],))
        return y, torch.func.functional_call(mixer, values, (x[:, 4:], state))[0]

    assert torch.autograd.gradcheck(function, (x, *mixer.parameters()), fast_mode=True)


def test_bfloat16_is_near():
    torch.manual_seed(0)
    mixer = Attention(64, heads=4, kv_heads=2, position=RoPE())
    x = torch.randn(2, 40, 64)
    expected = mixer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x[:, :30])
        z, _ = mixer(x[:, 30:], state)
    assert (torch.cat([y, z], 1) - expected).abs().max() < 0.03 * expected.abs().max()


def test_length_zero(mixer):
    y, state = mixer(inputs(2, 0))
    assert y.shape == (2, 0, DIM)
    torch.testing.assert_close(mixer(inputs(), state)[0], mixer(inputs())[0])
    torch.testing.assert_close(mixer(inputs(2, 0), state)[0], y)


COMPILED = """
import torch
from lengthwise.mixers.attention import Attention
from lengthwise.ops.patterns import first, window
from lengthwise.positions.alibi import ALiBi
from lengthwise.positions.fire import FIRE
from lengthwise.positions.rope import RoPE

torch.manual_seed(0)
x = torch.randn(2, 20, 24)
for settings in ({"kv_heads": 2, "position": RoPE()}, {"pattern": window(5) | first(3)}, {"position": ALiBi()}):
    torch._dynamo.reset()
    mixer = Attention(24, heads=4, **settings)
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            y, state = compiled(x[:, :15])
            z, _ = compiled(x[:, 15:], state)
            torch.testing.assert_close(torch.cat([y, z], 1), mixer(x)[0])
"""


@pytest.mark.slow
def test_compiles_without_leaving_the_graph():
    """In a process of its own: the run-time checks of annotations, which the tests install, can't be compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"heads": 5}, "heads must divide dim"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads must divide heads"),
        ({"head_dim": 7}, "head_dim must divide dim"),
        ({"head_dim": 0}, "head_dim must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_told(settings, message):
    with pytest.raises(InputError, match=message):
        Attention(DIM, **settings)


def test_settings_are_shown():
    shown = repr(Attention(DIM, heads=4, kv_heads=1, pattern=causal() & (window(5) | first(3))))
    assert "heads=4, kv_heads=1, head_dim=6, pattern=window(5) | causal() & first(3)" in shown
