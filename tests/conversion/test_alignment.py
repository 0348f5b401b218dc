from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.conversion import alignment, attention_statistics
from lengthwise.conversion.alignment import (
    attention_temperature,
    bisect,
    entropy_temperature,
    fit_temperature,
    fold_temperature,
    max_prob_temperature,
    statistics,
)
from lengthwise.conversion.attention_statistics import Totals
from lengthwise.errors import InputError

T5 = "2*(attention(heads=2, scale=1.0) + mlp(activation=relu, bias=false))"


def wide(model, std=0.4):
    """A model whose logits differ enough for sharpness to matter."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=std)
    return model.eval()


@torch.no_grad()
def encoder(layers=T5, position="t5(heads=2)", sharpness=1.0):
    model = wide(lw.Encoder(2000, 16, layers, position=position))
    for layer in alignment.attention_layers(model):
        layer.q_proj.weight.mul_(sharpness)
    return model


def pair():
    decoder = "attention(heads=2, scale=1.0) + cross_attention(heads=2, scale=1.0) + mlp"
    return wide(lw.EncoderDecoder(2000, 16, T5, decoder, position="t5(heads=2)"))


def draw(*shape, seed=1):
    return torch.randint(0, 2000, shape, generator=torch.Generator().manual_seed(seed))


def by_hand(model, tokens, tau=1.0):
    """The statistics of the first layer of an encoder, with the matrix of probabilities written out, in float64."""
    layer = model.stack.layers[0]
    x, places = layer.norm(model.embedding(tokens)), torch.arange(tokens.shape[1])
    q, k, _ = layer.part.project(x)
    logits = torch.einsum("bihd,bjhd->bhij", q, k) + layer.part.position.bias(places, places, 2).written()
    logits = logits.double()
    p = (logits / tau).softmax(-1)
    variance = logits.var(-1, unbiased=False)
    return [float(s.mean()) for s in (p.amax(-1), -(p * p.log()).sum(-1), variance)]


@torch.no_grad()
@pytest.mark.parametrize("numbers", [1 << 22, 100])
def test_statistics_are_those_of_the_written_matrix(numbers, monkeypatch):
    monkeypatch.setattr(attention_statistics, "NUMBERS", numbers)
    model, tokens = encoder("attention(heads=2, scale=1.0) + mlp"), draw(3, 21)
    found = statistics(model, tokens, 21)
    assert [found.max_prob, found.entropy, found.variance] == pytest.approx(by_hand(model, tokens), rel=1e-4)
    with attention_temperature(model, 0.5):
        sharp = statistics(model, tokens, 21)
    assert [sharp.max_prob, sharp.entropy] == pytest.approx(by_hand(model, tokens, 0.5)[:2], rel=1e-4)
    assert sharp.variance == pytest.approx(4 * found.variance, rel=1e-4)


@torch.no_grad()
def test_padding_is_neither_seen_nor_counted():
    model, texts = encoder(), [draw(17), draw(5, seed=2), draw(11, seed=3)]
    together = statistics(model, texts, 17)
    parts = [statistics(model, [text], 17) for text in texts]
    for name in ("max_prob", "entropy", "variance"):
        expected = sum(len(t) * getattr(part, name) for t, part in zip(texts, parts, strict=True)) / 33
        assert getattr(together, name) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_causal_query_counts_the_keys_it_sees():
    model = wide(lw.LanguageModel(2000, 16, "attention(heads=4, kv_heads=2, window=3)", position="none"))
    found = statistics(model, draw(2, 9), 9, where=["decoder"])
    assert found.entropy < math.log(3)
    first = statistics(model, draw(2, 1), 1, where=["decoder"])
    assert (first.max_prob, first.entropy, first.variance) == pytest.approx((1, 0, 0), abs=1e-6)


@torch.no_grad()
def test_nothing_stays_of_being_watched():
    model, tokens = encoder(), draw(2, 9)
    before = model(tokens)[0]
    statistics(model, tokens, 9)
    part = model.stack.layers[0].part
    assert "attend" not in vars(part)
    assert not part._forward_pre_hooks
    with attention_temperature(model, 0.5):
        assert (model(tokens)[0] - before).abs().max() > 1e-3
    assert torch.equal(model(tokens)[0], before)
    with pytest.raises(ZeroDivisionError), attention_temperature(model, 0.5):
        raise ZeroDivisionError
    assert torch.equal(model(tokens)[0], before)


@torch.no_grad()
def test_a_temperature_in_the_weights_is_the_division():
    model, tokens = pair(), draw(2, 19)
    where = ["encoder", "decoder", "cross"]
    for kinds in (where[:1], where[1:], where):
        with attention_temperature(model, 0.7, where=kinds):
            divided = model(tokens[:, :8], source=tokens)[0]
        folded = pair()
        assert (folded(tokens[:, :8], source=tokens)[0] - divided).abs().max() > 1e-3
        fold_temperature(folded, 0.7, where=kinds)
        got = folded(tokens[:, :8], source=tokens)[0]
        # logits of the two differ by their rounding alone
        torch.testing.assert_close(got, divided, rtol=0, atol=1e-6 * max(1.0, float(divided.abs().max())) * 4)


@torch.no_grad()
@pytest.mark.parametrize("match", alignment.MATCHES)
def test_the_fitted_temperature_matches(match):
    model, texts = encoder(sharpness=0.4), draw(6, 100)
    trained = statistics(model, texts, 20)
    tau = fit_temperature(model, texts, 20, 100, match)
    assert 0.3 < tau < 0.99

    def error(tau):
        with attention_temperature(model, tau):
            found = statistics(model, texts, 100)
        return alignment.MATCHES[match].measured(found) - alignment.MATCHES[match].measured(trained)

    assert error(tau - 2e-3) * error(tau + 2e-3) < 0


@torch.no_grad()
def test_texts_may_be_a_function_and_the_model_a_module_around_one():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = encoder(sharpness=0.4)

        def forward(self, x, state=None, layout=None):
            return self.inside(x[..., 0], state, layout)

    texts = draw(4, 120)
    expected = fit_temperature(encoder(sharpness=0.4), texts, 20, 120)
    assert 0.3 < expected < 1
    assert fit_temperature(Around(), lambda length: texts[:, :length, None], 20, 120) == expected
    assert fit_temperature(pair(), texts, 20, 120) != 1  # reads the encoder alone, without targets


def gaussian(length, sigma, rows=4000):
    return sigma * torch.randn(rows, length, generator=torch.Generator().manual_seed(length))


def of_rows(logits):
    totals = Totals()
    totals.add(logits[None, None], torch.ones(1, 1, 1, 1, dtype=torch.bool).expand(1, 1, *logits.shape))
    return totals.mean()


@pytest.mark.parametrize(("match", "closed", "found"), [("entropy", 0.593, 0.57), ("max_prob", 0.733, 0.71)])
def test_closed_forms_on_gaussian_logits(match, closed, found):
    """The values of σ = 1.5, L 512 → 4096; the formulas are within 6 % of what is found on drawn logits."""
    chosen = alignment.MATCHES[match]
    assert chosen.start(1.5, 512, 4096) == pytest.approx(closed, abs=5e-4)
    target, long = chosen.measured(of_rows(gaussian(512, 1.5))), gaussian(4096, 1.5, 1000)
    tau = bisect(lambda tau: (chosen.measured(of_rows(long / tau)) < target) == chosen.falls, closed)
    assert tau == pytest.approx(found, abs=0.01)
    assert tau == pytest.approx(closed, rel=0.06)


@pytest.mark.parametrize(("sigma", "entropy", "max_prob"), [(1.0, 0.44, 0.65), (2.0, 0.70, 0.79)])
def test_closed_forms_at_other_widths(sigma, entropy, max_prob):
    assert entropy_temperature(sigma, 512, 4096) == pytest.approx(entropy, abs=5e-3)
    assert max_prob_temperature(sigma, 512, 4096) == pytest.approx(max_prob, abs=5e-3)
    assert [form(sigma, 512, 512) for form in (entropy_temperature, max_prob_temperature)] == pytest.approx([1, 1])


@pytest.mark.parametrize("start", [0.1, 0.31, 0.5, 0.77, 0.999, 2.0])
@pytest.mark.parametrize("border", [0.301, 0.5, 0.7654, 0.998])
def test_the_border_is_found_from_any_start(border, start):
    asked = []
    tau = bisect(lambda tau: asked.append(tau) or tau > border, start)
    assert tau == pytest.approx(border, abs=1e-3)
    assert len(asked) < 20
    assert len(bisect_steps(border, border)) <= 8


def bisect_steps(border, start):
    asked = []
    bisect(lambda tau: asked.append(tau) or tau > border, start)
    return asked


def test_ends_where_no_temperature_matches():
    assert bisect(lambda _: False, 0.6) == 1
    assert bisect(lambda _: True, 0.6) == 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_temperature(encoder(), draw(2, 9), 4, 9, "mean"), "match"),
        (lambda: fit_temperature(encoder(), draw(2, 9), 4, 9, where=["encoders"]), "did you mean encoder"),
        (lambda: statistics(lw.LanguageModel(2000, 16, "attention"), draw(2, 9), 4), "it has decoder"),
        (lambda: statistics(lw.LanguageModel(2000, 16, "mamba"), draw(2, 9), 4), "it has none"),
        (lambda: statistics(pair(), draw(2, 9), 4, where=["cross"]), "reads texts without"),
        (lambda: statistics(encoder(), [], 4), "at least one"),
        (lambda: fold_temperature(encoder(position="alibi"), 0.5), "ALiBi"),
        (lambda: fold_temperature(encoder(), 0.0), "above 0"),
        (lambda: entropy_temperature(0.0, 4, 8), "sigma"),
        (lambda: entropy_temperature(1.0, 8, 4), "lengths"),
        (lambda: max_prob_temperature(4.0, 64, 128), "below 2.88"),
    ],
)
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_layout_is_found_by_name_too():
    model, tokens = encoder(), draw(1, 6)
    layout = Layout.padded([6], "right")
    with attention_statistics.observed(alignment.attention_layers(model)) as totals:
        model.stack.layers[0].part(model.embedding(tokens), layout=layout)
    assert totals.queries == 2 * 6
