import torch

from lengthwise.ops.joint_attention import Keys, Part, joint_attention


def row(x):
    return x[:, None]


def pairs_of(x):
    """Each two tokens side by side."""
    return x.unflatten(1, (-1, 2))


def later(x):
    return x[:, None, 2:]


def inputs():
    torch.manual_seed(0)
    shapes = [(2, 6, 3, 4)] + [(2, 6, 3, 4)] * 2 + [(2, 5, 3, 4)] * 2 + [(2, 1, 1, 3, 4)] * 2
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


MASK = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.5
MASK[1] = False
PARTS = [
    Part(pairs_of, (Keys(0, pairs_of, causal=True),)),
    Part(later, (Keys(1, row, mask=MASK[None, None]), Keys(2))),
]
"""Each token sees itself and its pair's first; the last four see some of five keys, of which one none, and one more."""


def logits_and_values(q, k, v, k_1, v_1, k_2, v_2):
    """Of each part, the logits with −∞ where nothing is seen, and the values: [batch, heads, 6, keys]."""
    own = (torch.arange(6)[:, None] // 2 == torch.arange(6) // 2).tril()
    more = torch.cat([torch.zeros(2, 6), torch.cat([MASK, torch.ones(4, 1)], 1)]).bool()
    keys = torch.cat([k_1, k_2[:, 0]], 1), torch.cat([v_1, v_2[:, 0]], 1)
    for key, value, seen in ((k, v, own), (*keys, more)):
        logits = torch.einsum("bihd,bjhd->bhij", q, key) * 0.7
        yield logits.masked_fill(~seen, -torch.inf), value


def call(q, k, v, k_1, v_1, k_2, v_2, constant=False):
    return joint_attention(q, [(k, v), (k_1, v_1), (k_2, v_2)], PARTS, scale=0.7, constant=constant)


def compare(ours, theirs, leaves):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_is_one_softmax_over_all_parts():
    given = inputs()
    logits, values = zip(*logits_and_values(*given), strict=True)
    p = torch.cat(logits, 3).softmax(3)
    compare(call(*given), torch.einsum("bhij,bjhd->bihd", p, torch.cat(values, 1)), given)


def test_shares_of_parts_may_be_constants():
    given = inputs()
    logits, values = zip(*logits_and_values(*given), strict=True)
    level = torch.stack([x.logsumexp(3) for x in logits]).detach().softmax(0)
    y = 0
    for x, value, alpha in zip(logits, values, level, strict=True):
        none = (x == -torch.inf).all(3, keepdim=True)
        p = x.masked_fill(none, 0).softmax(3).masked_fill(none, 0)
        y = y + torch.einsum("bhij,bjhd->bihd", p * alpha[..., None], value)
    compare(call(*given, constant=True), y, given)


def test_states_of_another_dtype_are_read():
    q, *rest = [x.detach().float() for x in inputs()]
    wide = [x.double() for x in rest]
    assert call(q, *wide).dtype == torch.float32
    torch.testing.assert_close(call(q, *wide), call(q, *rest))
