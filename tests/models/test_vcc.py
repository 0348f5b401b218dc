from __future__ import annotations

import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.models.build import build
from lengthwise.models.encoder import Encoder
from lengthwise.models.vcc import Vcc, rows_of_documents

LAYERS = [
    "2*(attention(heads=2) + mlp)",
    "2*(attention(heads=2, kv_heads=1, position=rope) + swiglu)",
    "2*(attention(heads=2, position=t5) + mlp)",
]
FORMS = ["attention", "random"]


def made(layers=LAYERS[0], **settings):
    """The wrapped layers, with weights large enough to tell rows apart, and the same without the wrapper."""
    torch.manual_seed(0)
    inner = build(layers, dim=8, causal=False).double().eval()
    for parameter in inner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Vcc(list(inner.layers), **settings).eval(), inner


def inputs(length=29, rows=2):
    return torch.randn(rows, length, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layout(rows, length, marked=(0, 5)):
    marks = torch.zeros(rows, length, dtype=torch.bool)
    marks[:, list(marked)] = True
    return Layout.numbered(torch.zeros(rows, length, dtype=torch.long)).mark(marks)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("select", FORMS)
@pytest.mark.parametrize(("block", "fine"), [(4, 99), (1, 0), (1, 3), (1, 99)])
def test_nothing_compressed_is_the_layers_themselves(layers, select, block, fine):
    """Every block fine, or every block one token."""
    vcc, plain = made(layers, block=block, fine=fine, places=3, select=select, eps=0.0)
    x = inputs()
    for given in (None, layout(2, 29)):
        torch.testing.assert_close(vcc(x, layout=given)[0], plain(x)[0], atol=1e-10, rtol=1e-10)


def test_gradients_are_those_of_the_layers_where_nothing_is_compressed():
    """In training too, but for what the scores pass to the selection's queries and keys."""
    vcc, plain = made(block=4, fine=99, places=3, eps=0.0)
    x = inputs()
    slopes = [torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())) for m in (vcc, plain)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_equal_tokens_in_a_block_may_be_its_mean():
    """b copies of a row are one row that counts b times: nothing is lost where all tokens of each block are equal."""
    vcc, plain = made("attention(heads=2) + mlp", block=4, fine=2, places=3, eps=0.0)
    x = torch.cat([inputs(3), inputs(7)[:, :6].repeat_interleave(4, 1)], 1)
    torch.testing.assert_close(vcc(x)[0], plain(x)[0], atol=1e-10, rtol=1e-10)


def test_one_layer_is_the_published_one():
    """Written out for one row: selection, short sequence, weights, and the way back."""
    b, h, places, eps = 4, 2, 3, 1e-4
    vcc, _ = made("attention(heads=1) + mlp", block=b, fine=h, places=places, eps=eps)
    attend, act = vcc.layers
    x, marked = inputs(places + 5 * b, 1), [2, 9]
    order = [2, 9] + [i for i in range(x.shape[1]) if i not in marked]
    c = x[0, order]
    important, tokens = c[:places], c[places:].view(5, b, 8)
    mean = tokens.sum(1) / (b + eps)
    part = attend.part
    q, k = part.q_proj(attend.norm(important)), part.k_proj(attend.norm(mean))
    s = (q @ k.T / 8**0.5).softmax(-1)[: len(marked)].sum(0) / places
    chosen = s.argsort(descending=True)
    fine, coarse = chosen[:h], chosen[h:]
    short = torch.cat([tokens[fine].flatten(0, 1), mean[coarse], important])
    n = torch.tensor([1.0] * (h * b) + [float(b)] * (5 - h) + [1.0] * places, dtype=x.dtype)
    q, k, v = (projection(attend.norm(short)) for projection in (part.q_proj, part.k_proj, part.v_proj))
    bias = (n + eps).log() + torch.tensor(1 + eps, dtype=x.dtype).log()
    a = part.o_proj((q @ k.T / 8**0.5 + bias).softmax(-1) @ v)
    y = short + a + act.part(act.norm(short + a)[None])[0][0]
    new = tokens.clone()
    new[fine] = y[: h * b].view(h, b, 8)
    new[coarse] += (y[h * b : h * b + 5 - h] - mean[coarse])[:, None]
    expected = torch.empty_like(x[0])
    expected[order] = torch.cat([y[-places:], new.flatten(0, 1)])
    got = vcc(x, layout=layout(1, x.shape[1], marked))[0][0]
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_scores_are_one_and_pass_a_gradient_to_the_selection():
    vcc, _ = made("attention(heads=2) + mlp", block=4, fine=2, places=3, explore=0.0)
    x, given, found = inputs(), layout(2, 29), []
    calm = vcc(x, layout=given)[0]
    scores = vcc._scores
    vcc._scores = lambda *given: found.append(scores(*given)) or found[-1]
    moved = vcc.train()(x, layout=given)[0]
    assert (found[0] == 1).all()
    torch.testing.assert_close(moved, calm, atol=1e-12, rtol=1e-12)  # the same products in another order
    with_scores, without = (
        torch.autograd.grad(m.square().sum(), vcc.layers[0].part.k_proj.weight)[0] for m in (moved, calm)
    )
    assert (with_scores - without).abs().max() > 1e-4


def test_exploring_chooses_by_chance_in_training_alone():
    vcc, _ = made("attention(heads=2) + mlp", block=4, fine=2, places=3, explore=1.0)
    x = inputs()
    assert torch.equal(vcc(x)[0], vcc(x)[0])
    vcc.train()
    torch.manual_seed(0)
    assert any(not torch.allclose(vcc(x)[0], vcc(x)[0]) for _ in range(5))


def test_what_is_not_marked_steers_nothing():
    """Blocks are chosen by the marked places alone, though others fill the places."""
    vcc, _ = made("attention(heads=2) + mlp", block=4, fine=2, places=6)
    chosen = []
    split = vcc.split
    vcc.split = lambda z, seen: chosen.append(split(z, seen)) or chosen[-1]
    x = inputs(30, 1)
    other = x.clone()
    other[:, 1:5] += 3 * torch.randn(1, 4, 8, dtype=x.dtype)  # they fill places 2 to 5
    vcc(x, layout=layout(1, 30, [0])), vcc(other, layout=layout(1, 30, [0]))
    assert torch.equal(chosen[0][0], chosen[1][0])
    torch.manual_seed(0)
    vcc(x, layout=layout(1, 30, [0])), vcc(x + 3 * torch.randn_like(x), layout=layout(1, 30, [0]))
    assert not torch.equal(chosen[2][0], chosen[3][0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_documents_and_padding_are_each_on_their_own(side):
    vcc, _ = made(block=4, fine=1, places=3)
    lengths = [29, 8, 2]
    packed = Layout.padded(lengths, side)
    marked = torch.zeros_like(packed.padding)
    for r, length in enumerate(lengths):
        marked[r, (29 - length if side == "left" else 0) + length - 1] = True
    x = inputs(29, 3)
    y = vcc(x, layout=packed.mark(marked))[0]
    for r, length in enumerate(lengths):
        own = slice(29 - length, None) if side == "left" else slice(0, length)
        alone = vcc(x[r : r + 1, own], layout=layout(1, length, [length - 1]))[0]
        torch.testing.assert_close(y[r : r + 1, own], alone, atol=1e-10, rtol=1e-10)
    assert torch.equal(y[packed.padding], x[packed.padding])


def test_rows_of_documents_lists_each_document():
    index, there = rows_of_documents(Layout.packed([[2, 3], [1]]))
    assert [row[own].tolist() for row, own in zip(index, there, strict=True)] == [[0, 1], [2, 3, 4], [5]]
    assert rows_of_documents(Layout.packed([[0]]))[0].numel() == 0


def test_the_parameters_are_those_of_the_layers_in_their_order():
    plain = Encoder(16, 8, "mlp + 2*(attention(heads=2) + mlp) + mlp")
    vcc = Encoder(16, 8, "mlp + vcc(2*(attention(heads=2) + mlp), block=4, fine=1, places=2) + mlp")
    assert [p.shape for p in vcc.parameters()] == [p.shape for p in plain.parameters()]
    for own, trained in zip(vcc.parameters(), plain.parameters(), strict=True):
        own.data.copy_(trained)
    vcc.stack.layers[1].fine = 99
    tokens = torch.randint(0, 16, (2, 21))
    torch.testing.assert_close(vcc(tokens)[0], plain(tokens)[0], atol=1e-3, rtol=1e-3)  # ε = 1e-4


def test_rows_are_counted():
    vcc, _ = made(block=16, fine=8, places=16)
    assert vcc.rows(528) == 8 * 16 + 24 + 16
    assert vcc.rows(10) == 16
    assert vcc.rows(16 + 40) == 3 * 16 + 16


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("vcc(attention(heads=2), block=4)", "in pairs"),
        ("vcc(attention(heads=2) + attention(heads=2))", "each token alone"),
        ("vcc(mlp + mlp)", "attention that sees everything"),
        ("vcc(attention(heads=2, window=4) + mlp)", "attention that sees everything"),
        ("vcc(attention(heads=2) + mlp, block=0)", "block must be at least 1"),
        ("vcc(attention(heads=2) + mlp, fine=-1)", "fine must be at least 0"),
        ("vcc(attention(heads=2) + mlp, places=0)", "places must be at least 1"),
        ("vcc(attention(heads=2) + mlp, select=chance)", "random"),
        ("vcc(attention(heads=2) + mlp, explore=2)", "between 0 and 1"),
        ("vcc(attention(heads=2) + mlp, blocks=2)", "block"),
        ("vcc(block=2)", "takes layers"),
    ],
)
def test_bad_expressions_are_refused(expression, message):
    with pytest.raises(InputError, match=message):
        Encoder(16, 8, expression)


def test_too_many_marks_are_refused():
    vcc, _ = made(places=2)
    with pytest.raises(InputError, match="3 tokens of a document are marked"):
        vcc(inputs(), layout=layout(2, 29, [1, 2, 3]))
