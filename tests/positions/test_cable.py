import inspect

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.mixers import MIXERS
from lengthwise.mixers.attention import Attention
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.attention import attention
from lengthwise.positions.alibi import ALiBi, slopes
from lengthwise.positions.cable import Apart, Cable
from lengthwise.training.optimizer import adamw

HEADS = 4
READERS = ("attention", "routing_attention")


def layer(dim=8, dtype=torch.float64, std=0.5, causal=True, **settings):
    """Attention whose steps differ much between tokens."""
    torch.manual_seed(0)
    made = Attention(dim, heads=HEADS, position=Cable(dim, heads=HEADS, causal=causal), causal=causal, **settings)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return made.to(dtype)


def plain(module, x, both=False):
    """The definition: each query in turn, steps added up from the key on."""
    q, k, v = module.project(x[None])
    k, v = (t.repeat_interleave(module.heads // module.kv_heads, 2)[0] for t in (k, v))
    scale = module.head_dim**-0.5 if module.scale is None else module.scale
    s = torch.log1p(torch.exp(x @ module.position.weight + module.position.offset))
    rows = []
    for i in range(len(x)):
        keys = range(len(x)) if both else range(i + 1)
        logits = []
        for j in keys:
            between = s[min(i, j) + 1 : max(i, j) + 1].sum(0)
            logits.append((q[0, i] * k[j]).sum(-1) * scale - between)
        p = torch.stack(logits).softmax(0)
        rows.append(torch.einsum("jh,jhd->hd", p, v[: len(p)]).flatten())
    return module.o_proj(torch.stack(rows))


@pytest.mark.parametrize("settings", [{}, {"scale": 1.0}, {"kv_heads": 2}], ids=["usual", "unscaled", "grouped"])
def test_a_logit_falls_by_the_steps_between(settings):
    module, x = layer(**settings), torch.randn(11, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x[None])[0][0], plain(module, x))


def test_both_directions_count_alike():
    module, x = layer(causal=False), torch.randn(11, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x[None])[0][0], plain(module, x, both=True))


def test_steps_that_ask_no_token_are_the_slopes_of_alibi():
    module = layer(16, torch.float32)
    with torch.no_grad():
        module.position.weight.zero_()
        module.position.offset.copy_(slopes(HEADS).expm1().log())
    x = torch.randn(2, 300, 16)
    ours, _ = module(x)
    module.position = ALiBi()
    torch.testing.assert_close(ours, module(x)[0], atol=1e-5, rtol=1e-5)


def test_two_further_channels_are_the_bias():
    """q' = [q / √d, C_i, 1] and k' = [k, 1, −C_j]."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 40, HEADS, 6) for _ in range(3))
    c = -torch.rand(2, 40, HEADS).cumsum(1)
    places = torch.arange(40)
    bias = Cable(8, heads=HEADS).bias(places, places, HEADS, (c, c))
    one = torch.ones_like(c)
    longer_q, longer_k = (
        torch.cat([x, torch.stack(more, -1)], -1) for x, more in ((q * 6**-0.5, (c, one)), (k, (one, -c)))
    )
    torch.testing.assert_close(
        attention(q, k, v, bias=bias), attention(longer_q, longer_k, v, scale=1.0), atol=1e-4, rtol=1e-4
    )


def test_token_by_token_far_from_the_beginning():
    """C is near −1500 at the end, of which float32 keeps four digits behind the point."""
    module = layer(dtype=torch.float32, std=0.3)
    x = torch.randn(1, 2048, 8)
    with torch.no_grad():
        module.position.offset.fill_(0.7)
        whole, _ = module(x)
        _, state = module(x[:, :2040])
        for i in range(2040, 2048):
            y, state = module(x[:, i : i + 1], state)
            torch.testing.assert_close(y, whole[:, i : i + 1], atol=1e-4, rtol=1e-3)


def test_the_distance_of_sums_is_a_bias_like_the_others():
    f, g = (torch.randn(2, HEADS, n, dtype=torch.float64, requires_grad=True) for n in (5, 9))
    bias = Apart(Cable(8, heads=HEADS).bias(f, g, HEADS, (f.mT, g.mT)))
    assert bias.shape == (2, HEADS, 5, 9)
    expected = -(f[..., None] - g[:, :, None]).abs()
    torch.testing.assert_close(bias.written(), expected)
    torch.testing.assert_close(bias.scaled(0.5).written(), 0.5 * expected)
    assert torch.equal(bias.of_heads(slice(1, 3)).written(), expected[:, 1:3])
    q, k, v = (torch.randn(2, n, HEADS, 3, dtype=torch.float64) for n in (5, 9, 9))
    found = []
    for form in ("reference", "tiled"):
        o = attention(q, k, v, bias=bias.scaled(0.7), backend=form)
        found.append(torch.autograd.grad(o.square().sum(), (f, g)))
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


def test_heads_begin_alike_or_as_steep_as_those_of_alibi():
    still = torch.zeros(1, 1, 8)
    equal, spread = Cable(8, heads=HEADS), Cable(8, heads=HEADS, start="spread")
    torch.testing.assert_close(equal.steps(still, HEADS)[0, 0], -torch.full((HEADS,), 2.0).log())
    torch.testing.assert_close(spread.steps(still, HEADS)[0, 0], -slopes(HEADS).float())
    weight = Cable(4096, heads=HEADS).weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.03)  # four deviations of that of 16384 numbers are 2.2 %


def test_every_layer_has_steps_of_its_own_which_do_not_decay():
    model = LanguageModel(7, 8, f"2*(attention(heads={HEADS}) + mlp)", position=f"cable(heads={HEADS})")
    weights = [m.weight for m in model.modules() if isinstance(m, Cable)]
    assert len(weights) == 2
    assert not torch.equal(*weights)
    decayed, kept = adamw(model, learning_rate=1.0).param_groups
    assert all(any(p is w for p in kept["params"]) for w in weights)
    assert not any(p is w for p in decayed["params"] for w in weights)


@pytest.mark.parametrize("mixer", [name for name, cls in MIXERS.items() if "position" in cls.inherits])
def test_a_mixer_reads_the_steps_or_refuses_them(mixer):
    accepted = inspect.signature(MIXERS[mixer]).parameters
    heads = 2 if mixer == "routing_attention" else HEADS
    causal = not (mixer == "longformer" or "causal" not in accepted)
    expression, position = f"{mixer}(heads={HEADS})", Cable(16, heads=heads)
    if mixer not in READERS:
        with pytest.raises(InputError, match="Cable"):
            build(expression, 16, position=position, causal=causal)
        return
    module, x = build(expression, 16, position=position, causal=causal), torch.randn(1, 12, 16)
    before = module(x)[0]
    for name, parameter in module.named_parameters():
        if name.endswith("position.weight"):
            torch.nn.init.normal_(parameter)
    assert (module(x)[0] - before).abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "heads=4"), ({"heads": 0}, "at least 1"), ({"heads": 2, "start": "sprea"}, "did you mean spread")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Cable(8, **settings)


def test_another_attention_is_refused():
    with pytest.raises(InputError, match=r"cable\(heads=2\)"):
        Attention(8, heads=2, position=Cable(8, heads=4))(torch.zeros(1, 3, 8))
    with pytest.raises(InputError, match="width 16"):
        Attention(8, heads=2, position=Cable(16, heads=2))(torch.zeros(1, 3, 8))
    with pytest.raises(InputError, match="sums"):
        Cable(8, heads=2).bias(torch.arange(3), torch.arange(3), 2)
