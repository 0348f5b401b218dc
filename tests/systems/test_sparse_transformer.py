"""The patterns by their definitions, the initial values, and the experiment's pieces at sizes that take a moment."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.models.build import build_pattern
from lengthwise.ops.attention import attention
from lengthwise.ops.patterns import blocks, causal, fixed, strided, window
from lengthwise.systems import sparse_transformer as system
from lengthwise.systems.experiments import begin
from lengthwise.systems.system import Run
from lengthwise.training.fit import next_token_loss


def strided_sets(length, stride):
    """A1 and A2 of the paper's strided attention, with a window of exactly the stride."""
    near = torch.zeros(length, length, dtype=torch.bool)
    far = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1):
            near[i, j] = i - stride < j
            far[i, j] = (i - j) % stride == 0
    return near, far


def fixed_sets(length, block, count, head=0):
    """A1 and A2 of the paper's fixed attention; head m takes the m-th group of places from the block's end."""
    near = torch.zeros(length, length, dtype=torch.bool)
    far = torch.zeros(length, length, dtype=torch.bool)
    end = block - head * count % block
    for i in range(length):
        for j in range(i + 1):
            near[i, j] = j // block == i // block
            far[i, j] = j % block in range(end - count, end)
    return near, far


def dense(q, k, v, masks):
    """Attention of each head under the mask of its group; what sees nothing gives 0."""
    masks = torch.stack(masks).repeat_interleave(q.shape[2] // len(masks), 0)
    logits = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[3] ** 0.5
    p = logits.masked_fill(~masks, -torch.inf).softmax(-1).nan_to_num(0)
    return torch.einsum("bhij,bjhd->bihd", p, v)


def same_as_dense(pattern, masks, length):
    q, k, v = (torch.randn(2, length, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    ours, expected = attention(q, k, v, pattern=pattern), dense(q, k, v, masks)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)
    by = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * by).sum(), (q, k, v)) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 70), stride=st.integers(1, 20))
def test_strided_attention_is_dense_attention_on_its_sets(length, stride):
    near, far = strided_sets(length, stride)
    same_as_dense(causal() & window(stride), [near], length)
    same_as_dense(causal() & strided(stride), [far], length)
    same_as_dense(causal() & (window(stride) | strided(stride)), [near | far], length)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 70), count=st.integers(1, 5), groups=st.integers(1, 4))
def test_fixed_attention_is_dense_attention_on_its_sets(length, count, groups):
    block = count * groups
    near, far = fixed_sets(length, block, count)
    same_as_dense(causal() & blocks(block), [near], length)
    same_as_dense(causal() & fixed(block, count), [far], length)
    heads = [a | b for a, b in (fixed_sets(length, block, count, head) for head in range(4))]
    same_as_dense(causal() & build_pattern(system.fixed_heads(block, count, 4)), heads, length)


@pytest.mark.parametrize("length", [300, 521])
def test_so_it_is_over_many_tiles(length):
    near, far = strided_sets(length, 24)
    same_as_dense(causal() & (window(24) | strided(24)), [near | far], length)
    heads = [a | b for a, b in (fixed_sets(length, 24, 7, head) for head in range(2))]
    same_as_dense(causal() & build_pattern(system.fixed_heads(24, 7, 2)), heads, length)


@given(length=st.integers(1, 60), stride=st.integers(1, 12), count=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_every_earlier_place_is_two_hops_away(length, stride, count):
    everything = causal().mask(torch.arange(length), torch.arange(length))
    near, far = strided_sets(length, stride)
    assert torch.equal((far.int() @ near.int()) > 0, everything)
    near, far = fixed_sets(length, stride, min(count, stride))
    stays = torch.eye(length, dtype=torch.int)  # the residual stream
    assert torch.equal(((far.int() + stays) @ near.int()) > 0, everything)


def test_heads_take_their_places_from_the_end_of_a_block():
    assert system.fixed_heads(8, 4, 3) == "per_head(blocks(8) | fixed(8, 4, 0), blocks(8) | fixed(8, 4, 4), " + (
        "blocks(8) | fixed(8, 4, 0))"
    )


@pytest.fixture
def small(monkeypatch):
    for name, value in {"SIDE": 6, "DIM": 16, "BATCH": 2, "STEPS": 2, "COUNT": 3}.items():
        monkeypatch.setattr(system, name, value)


def blocks_of(count):
    return f"{count}*(attention(heads=4, pattern=window(4)) + mlp(activation=sigmoid_gelu))"


def test_the_first_loss_is_the_logarithm_of_the_vocabulary_and_moves_the_output_matrix_alone(small):
    model = system.build(blocks_of(2), seed=10)
    loss = next_token_loss(model, torch.randint(0, 32, (2, 37)))
    assert loss.item() == pytest.approx(math.log(32), rel=1e-6)
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"head.weight"}


def added(count, seed):
    """The standard deviation of what `count` blocks add together."""
    model = system.build(blocks_of(count), seed)
    x = model.embed(torch.randint(0, 32, (4, 36)), torch.arange(36).expand(4, -1))
    return (model.stack(x)[0] - x).std().item()


def test_what_all_blocks_add_is_as_large_as_one_block_whatever_their_number(small):
    """A block's own output, before 1/√(2N), is what one block adds times √2."""
    one = math.sqrt(2) * added(1, seed=10)
    few, many = (added(count, seed=11) / one for count in (4, 64))
    assert 0.5 < few < 2
    assert 0.5 < many < 2
    assert 0.5 < many / few < 2
    assert many * math.sqrt(2 * 64) > 2  # it wouldn't be so without the factor


def test_initial_values_are_those_of_the_paper(monkeypatch):
    monkeypatch.setattr(system, "DIM", 256)
    model = system.build(blocks_of(2), seed=10)
    attend, act = model.stack.layers[0].part, model.stack.layers[1].part
    for weight, std in [
        (model.embedding.weight, 0.125 / 16),
        (model.position.columns, 0.125 / math.sqrt(512)),
        (attend.q_proj.weight, 0.125 / 16),
        (attend.o_proj.weight, 0.125 / 16 / 2),
        (act.up.weight, 0.125 / 16),
        (act.down.weight, 0.125 / 32 / 2),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.05)  # of at least 4096 draws: 1.1 % each
    assert not act.up.bias.any()
    assert not model.head.weight.any()


def test_logits_are_counted():
    near, far = (mask.sum().item() for mask in strided_sets(256, 16))
    assert system.entries_share(system.ARMS["dense"]) == 1
    assert system.entries_share(system.ARMS["strided"]) == (near + far) / 2 / (256 * 257 / 2)
    heads = [(a | b).sum().item() for a, b in (fixed_sets(256, 16, 4, head) for head in range(4))]
    assert system.entries_share(system.ARMS["fixed"]) == pytest.approx(sum(heads) / 4 / (256 * 257 / 2))


def test_recomputed_layers_learn_the_same(small):
    layers = system.ARMS["off stride"]
    plain, again = system.build(layers, 10), system.build(f"recompute({layers})", 10)
    plain.head.weight.data.normal_()
    again.head.weight.data.copy_(plain.head.weight)
    tokens = begin(torch.randint(0, 32, (2, 36)))
    for model in (plain, again):
        next_token_loss(model, tokens).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_the_experiment_on_few_steps(small):
    pytest.importorskip("skimage")
    told = []
    figures = list(system.reproduce(Run(seeds=(10, 11, 12), progress=lambda text, done: told.append(done))))
    assert len(figures) == 5
    assert len(told) == 2 * (3 * 2 + 2)
    assert told == sorted(told)
    assert told[-1] == 1
    assert all(math.isfinite(figure.measured) for figure in figures)
