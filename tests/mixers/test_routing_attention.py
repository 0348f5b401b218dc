from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lengthwise import laws
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.mixers.routing_attention import RoutingAttention, normed
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.attention import attention_reference
from lengthwise.ops.patterns import causal, full
from lengthwise.training.auxiliary import auxiliary_loss
from lengthwise.training.fit import fit
from tests.stepping import token_by_token


def mixer(seed=0, dim=12, dtype=torch.float64, **settings):
    torch.manual_seed(seed)
    made = RoutingAttention(dim, **{"heads": 3, "routing_heads": 3, "clusters": 3, "members": 4, **settings}).to(dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def inputs(length=21, dim=12, batch=2):
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def projected(made, x):
    q = normed(made.q_proj(x).unflatten(-1, (made.heads, -1)))
    k = q if made.k_proj is None else normed(made.k_proj(x).unflatten(-1, (made.heads, -1)))
    return q, k, made.v_proj(x).unflatten(-1, (made.heads, -1))


@pytest.mark.parametrize("assignment", ["nearest", "topw"])
@pytest.mark.parametrize("pattern", [causal(), full()], ids=repr)
def test_one_cluster_of_everything_is_dense_attention(assignment, pattern):
    """On normed queries that are the keys; the published form shrinks it by its 1.01."""
    if assignment == "nearest" and pattern == full():
        pytest.skip("nearest looks back alone")
    made, x = mixer(clusters=1, members=21, assignment=assignment, causal=pattern == causal()), inputs()
    o = attention_reference(*projected(made, x), pattern=pattern)
    o = o / 1.01 if assignment == "topw" else o
    torch.testing.assert_close(made(x)[0], made.o_proj(o.flatten(2)), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("members", [1, 4, 100])
@pytest.mark.parametrize("length", [1, 3, 21, 150])
def test_nearest_is_a_loop_over_the_last_members(members, length):
    made, x = mixer(members=members), inputs(length)
    z, _, v = projected(made, x)
    apart = (z[:, :, :, None] - made.centroids).square().sum(-1)
    o = torch.zeros_like(v)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        for i in range(length):
            c = apart[b, :, h].argmin(-1)
            own = (c[: i + 1] == c[i]).nonzero().flatten()[-members:]
            o[b, i, h] = (z[b, own, h] @ z[b, i, h] / 2).softmax(0) @ v[b, own, h]
    torch.testing.assert_close(made(x)[0], made.o_proj(o.flatten(2)), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("masked", [True, False])
def test_topw_is_a_loop_over_the_clusters(masked):
    made, x = mixer(assignment="topw", causal=masked), inputs()
    q, k, v = projected(made, x)
    o, count = torch.zeros_like(v), torch.zeros(*v.shape[:3], 1, dtype=v.dtype)
    for b, h, c in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)).tolist():
        apart = [(z[b, :, h] - made.centroids[h, c]).square().sum(-1) for z in (q, k)]
        queries, keys = (sorted(a.argsort()[:4].tolist()) for a in apart)
        for i in queries:
            seen = [j for j in keys if j <= i or not masked]
            count[b, i, h] += 1
            if seen:
                o[b, i, h] += (k[b, seen, h] @ q[b, i, h] / 2).softmax(0) @ v[b, seen, h]
    torch.testing.assert_close(made(x)[0], made.o_proj((o / (count + 0.01)).flatten(2)), atol=1e-10, rtol=1e-10)
    assert (count == 0).any()


def test_local_heads_are_attention_in_a_window():
    made, x = mixer(routing_heads=1, window=5), inputs()
    assert made.local.heads == 2
    routed = made.o_proj(made.o_proj.weight.new_zeros(2, 21, 4))
    made.v_proj.weight.data.zero_()
    torch.testing.assert_close(made(x)[0], made.local(x)[0] + routed)


@pytest.mark.parametrize("seen", [3, 5, 16, 19])
def test_many_tokens_after_a_state_are_as_few(seen):
    """Beyond k new tokens are sorted among the rings; up to k each gathers its own."""
    made, x = mixer(clusters=2, members=5), inputs(40)
    whole, _ = made(x)
    _, state = made(x[:, :seen])
    many, after = made(x[:, seen:], state)
    few, state = token_by_token(made, x[:, seen:], state)
    torch.testing.assert_close(many, whole[:, seen:], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(few, whole[:, seen:], atol=1e-10, rtol=1e-10)
    for name in ("filled", "recent_clusters", "seen"):
        assert torch.equal(*(torch.as_tensor(getattr(s.routed, name)) for s in (after, state)))


def test_a_decoded_token_copies_no_more_than_it_reads():
    """The rings stay where they are until w tokens are sorted in at once."""
    made, x = mixer(clusters=4, members=8), inputs(40)
    with torch.no_grad():
        _, state = made(x[:, :24])
        for step, token in enumerate(x[:, 24:].split(1, 1), 1):
            before = state.routed.keys
            _, state = made(token, state)
            assert (state.routed.keys is before) == (step % 8 != 0)


def test_memory_grows_with_the_length_alone():
    made = mixer(dim=16, heads=1, routing_heads=1, clusters=16, members=64, dtype=torch.float32)
    x = torch.randn(1, 4096, 16)
    short, long = (peak_bytes(lambda n=n: made(x[:, :n])[0].sum().backward()) for n in (2048, 4096))
    assert long < 2.2 * short
    assert long < 4096**2  # a quarter of one matrix of logits


def test_training_moves_the_centroids_once_a_pass_and_evaluation_never():
    made, x = mixer(), inputs()
    start = made.centroids.clone()
    made(x)
    assert torch.equal(made.centroids, start)
    assert not made.new_counts.any()
    made.train()
    made(x)
    assert torch.equal(made.centroids, start)  # frozen within the pass
    assert made.new_counts.sum() == 2 * 21 * 3
    made.eval()
    moved = made.centroids.clone()
    assert not torch.equal(moved, start)
    torch.testing.assert_close(made.counts.sum(1), torch.full((3,), 0.999 * 3 + 0.001 * 42).double())
    made.train(), made.eval()
    assert torch.equal(made.centroids, moved)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_moves_them_once(reentrant):
    x = inputs().requires_grad_()
    plain, kept = mixer().train(), mixer().train()
    for _ in range(3):
        y = plain(x)[0]
        slope = torch.autograd.grad(y.sum(), x)
        again = checkpoint(lambda x: kept(x)[0], x, use_reentrant=reentrant)
        x.grad = None
        again.sum().backward()
        torch.testing.assert_close(x.grad, slope[0])
    for name in ("centroids", "counts", "sums", "new_counts", "new_sums"):
        assert torch.equal(getattr(kept, name), getattr(plain, name))


def test_padding_teaches_nothing():
    lengths = [5, 9]
    layout, x = Layout.padded(lengths, "right"), inputs(9)
    made, other = mixer().train(), mixer().train()
    made(x, None, layout)
    other(torch.where(layout.padding[..., None], 100.0, x), None, layout)
    assert made.new_counts.sum() == 3 * sum(lengths)
    torch.testing.assert_close(made.new_sums, other.new_sums)
    torch.testing.assert_close(made.auxiliary, other.auxiliary)


def test_commitment_draws_items_to_their_centroids_and_no_gradient_reaches_these():
    made, x = mixer(commitment=0.5).train(), inputs()
    made(x)
    z, _, _ = projected(made, x)
    apart = (z[:, :, :, None] - made.centroids).square().sum(-1).amin(-1)
    loss = auxiliary_loss(made)
    torch.testing.assert_close(loss, 0.5 * apart.mean())
    assert auxiliary_loss(made) == 0  # taken once
    loss.backward()
    assert made.q_proj.weight.grad.abs().max() > 0
    assert all(not b.requires_grad for b in made.buffers())


def test_rare_centroids_stay_among_the_items_from_the_first_step_on():
    """None ends up beyond the norm of the items, √d, and most are still the nearest of some."""
    made = mixer(clusters=8, decay=0.99).train()
    for seed in range(20):
        made(torch.randn(4, 64, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    made.eval()
    assert made.centroids.norm(dim=-1).max() <= 2
    assert (made.counts > 1).float().mean() > 0.7


def test_fit_adds_what_parts_leave():
    """With the commitment alone to lower, items come nearer to their centroids."""

    def train(commitment):
        torch.manual_seed(10)
        layers = f"routing_attention(heads=2, clusters=4, members=8, commitment={commitment})"
        model = LanguageModel(16, 16, layers, position="none")
        tokens = torch.randint(0, 16, (4, 33), generator=torch.Generator().manual_seed(3))
        losses = fit(model, iter([tokens] * 40), steps=40, learning_rate=3e-3, warmup=1, weight_decay=0.0)
        part = model.stack.layers[0].part
        part.commitment = 1.0
        model.train()(tokens)
        return losses, part.auxiliary.item()

    (plain, far), (drawn, near) = train(0.0), train(1.0)
    assert near < 0.8 * far
    assert plain[0] == drawn[0]  # what is returned is the loss alone


def test_bfloat16_is_close_where_no_token_changes_its_cluster():
    x = inputs(40).float()
    wide = mixer(dtype=torch.bfloat16).float()
    small = mixer(dtype=torch.bfloat16)
    clusters = wide.assign(projected(wide, x.bfloat16().float())[1])
    for made in (wide, small):
        made.assign = lambda z: clusters
    expected, y = wide(x.bfloat16().float())[0], small(x.bfloat16())[0]
    assert (y.float() - expected).square().mean().sqrt() < 0.06 * expected.square().mean().sqrt()


def test_reads_from_an_expression():
    part = build("routing_attention(heads=4, routing_heads=1, clusters=5, members=7, position=rope)", dim=16)
    assert (part.heads, part.local.heads, part.clusters, part.members) == (1, 3, 5, 7)
    laws.check(part, laws=["resumable"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"routing_heads": 4}, "4 of 3"),
        ({"routing_heads": 0}, "routing_heads must be at least 1"),
        ({"clusters": 0}, "clusters must be at least 1"),
        ({"members": 0}, "members must be at least 1"),
        ({"assignment": "topk"}, "topw"),
        ({"causal": False}, "looks back alone"),
        ({"heads": 5}, "heads must divide"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        RoutingAttention(12, **{"heads": 3, **settings})


def test_a_language_model_refuses_what_looks_ahead():
    with pytest.raises(InputError, match="causal"):
        LanguageModel(8, 8, "routing_attention(heads=2, assignment=topw)")
