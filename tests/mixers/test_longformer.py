from __future__ import annotations

import pytest
import torch
from torch import nn

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.longformer import Longformer
from lengthwise.positions import ALiBi

DIM, HEADS = 16, 4


def build(**settings):
    torch.manual_seed(0)
    mixer = Longformer(DIM, heads=HEADS, **settings).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return mixer


def inputs(batch=2, length=30):
    torch.manual_seed(1)
    return torch.randn(batch, length, DIM, dtype=torch.float64)


def written_out(mixer, x, marks, window, dilation):
    """The definition of one document: a mask, and rows of global tokens with their own projections."""
    place = torch.arange(x.shape[1])
    distance = place[:, None] - place
    seen = (distance.abs() <= window * dilation) & (distance % dilation == 0)
    seen[:, marks] = True

    def attend(names, mask):
        q, k, v = (getattr(mixer, name)(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in names)
        logits = q @ k.mT / (DIM // HEADS) ** 0.5
        p = logits.masked_fill(~mask, -torch.inf).softmax(-1)
        return (p @ v).transpose(1, 2).flatten(2)

    o = attend(("q_proj", "k_proj", "v_proj"), seen)
    wide = attend(("global_q_proj", "global_k_proj", "global_v_proj"), torch.ones_like(seen))
    o[:, marks] = wide[:, marks]
    return mixer.o_proj(o)


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("length", [1, 7, 30])
def test_equals_the_definition(dilation, length):
    mixer, x = build(window=3, dilation=dilation, first=2), inputs(length=length)
    torch.testing.assert_close(mixer(x)[0], written_out(mixer, x, [0, 1][:length], 3, dilation))


def test_a_window_beyond_the_sequence_is_plain_attention():
    mixer, x = build(window=40), inputs()
    torch.testing.assert_close(mixer(x)[0], written_out(mixer, x, [], 30, 1))


def test_rows_and_documents_have_global_tokens_of_their_own():
    mixer, x = build(window=3), inputs()
    layout = Layout.packed([[11, 19], [25]])
    marked = torch.zeros(2, 30, dtype=torch.bool)
    marked[0, [2, 9, 11]] = marked[1, [24, 28]] = True  # the last of them in padding, where it means nothing
    y, _ = mixer(x, None, layout.mark(marked))
    for row, begin, end, marks in ((0, 0, 11, [2, 9]), (0, 11, 30, [0]), (1, 0, 25, [24])):
        expected = written_out(mixer, x[row : row + 1, begin:end], marks, 3, 1)
        torch.testing.assert_close(y[row : row + 1, begin:end], expected)
    assert (y[1, 25:] == mixer.o_proj.bias).all()


def test_gradients_reach_both_sets_of_projections():
    mixer, x = build(window=2), inputs()
    marked = torch.zeros(2, 30, dtype=torch.bool)
    marked[0, 5] = True
    mixer(x, None, Layout.packed([[30], [30]]).mark(marked))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters() if p.ndim > 1)


def test_global_projections_begin_as_copies():
    mixer = Longformer(DIM, heads=HEADS)
    for name in "qkv":
        ours, theirs = getattr(mixer, f"{name}_proj"), getattr(mixer, f"global_{name}_proj")
        assert torch.equal(ours.weight, theirs.weight)
        assert ours.weight is not theirs.weight


def test_causal_it_sees_its_own_window_back():
    mixer, x = build(window=3, dilation=2, causal=True), inputs(1)
    x.requires_grad_()
    mixer(x)[0][0, 20].sum().backward()
    assert x.grad.abs().sum(-1)[0].nonzero().flatten().tolist() == [14, 16, 18, 20]
    assert mixer.receptive_field == 7
    assert not any(name.startswith("global") for name, _ in mixer.named_parameters())


@pytest.mark.parametrize("counts", [([0, 7, 20], [3]), ([], [0])])
def test_equals_transformers(counts):
    modeling = pytest.importorskip("transformers.models.longformer.modeling_longformer")
    config = modeling.LongformerConfig(
        hidden_size=DIM, num_attention_heads=HEADS, attention_window=[8], num_hidden_layers=1
    )
    torch.manual_seed(0)
    theirs = modeling.LongformerSelfAttention(config, 0).eval()
    ours = Longformer(DIM, heads=HEADS, window=4)
    for kind, suffix in (("", ""), ("global_", "_global")):
        for name, word in (("q", "query"), ("k", "key"), ("v", "value")):
            getattr(ours, f"{kind}{name}_proj").load_state_dict(getattr(theirs, word + suffix).state_dict())
    nn.init.eye_(ours.o_proj.weight)
    x = inputs(length=40).float()
    marked = torch.zeros(2, 40, dtype=torch.bool)
    marked[0, counts[0]] = marked[1, counts[1]] = True
    mask = torch.zeros(2, 40)
    mask[1, 33:] = -1e4
    mask[marked] = 1e4
    y = theirs(x, mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=True)[0]
    o, _ = ours(x, None, Layout.padded([40, 33], side="right").mark(marked))
    torch.testing.assert_close(o[0], y[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(o[1, :33], y[1, :33], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"dilation": 0}, "dilation must be at least 1"),
        ({"first": -1}, "first must be at least 0"),
        ({"first": 1, "causal": True}, "global tokens see ahead"),
        ({"position": ALiBi()}, "changes the logits"),
    ],
)
def test_what_makes_no_sense_is_told(settings, message):
    with pytest.raises(InputError, match=message):
        Longformer(DIM, heads=HEADS, **settings)


def test_a_causal_layout_marks_nothing():
    layout = Layout.packed([[30], [30]]).mark(torch.ones(2, 30, dtype=torch.bool))
    with pytest.raises(InputError, match="the layout marks some"):
        build(causal=True)(inputs(), None, layout)
