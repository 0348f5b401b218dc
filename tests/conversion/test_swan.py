from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lengthwise.contract import Layout, state_tensors
from lengthwise.conversion import swan as module
from lengthwise.conversion.families import FAMILIES
from lengthwise.conversion.swan import (
    best_factors,
    fit_offset,
    fit_scale,
    fit_slope,
    nats_by_position,
    perplexity_beyond,
    scaled,
    swan,
)
from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.temperature import LogScaling, LogSlope
from tests.stepping import token_by_token

LLAMA = "4*(attention(heads=4, kv_heads=2) + swiglu(hidden=20))"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "pad_token_id": 0,
    "attn_implementation": "eager",
}


def trained(layers=LLAMA, seed=0, **settings):
    """A rotary model whose logits are wide enough for what a layer sees to matter."""
    torch.manual_seed(seed)
    model = LanguageModel(40, 32, layers, **settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model


def draw(*shape):
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(1))


def take(theirs, ours):
    """A model of transformers with the names of Llama's weights, and with those of ours."""
    theirs.load_state_dict(FAMILIES["llama"].write(ours))
    return theirs.eval()


def close(got, expected):
    assert expected.std() > 0.1
    # float32 adds up in another order, over four layers
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("window", [5, 64])
def test_the_whole_model_is_that_of_smollm3(window):
    transformers = pytest.importorskip("transformers")
    config = transformers.SmolLM3Config(
        **SIZES,
        no_rope_layers=[0, 1, 1, 1],
        use_sliding_window=True,
        sliding_window=window,
        layer_types=["full_attention", *["sliding_attention"] * 3],
    )
    ours = swan(trained(), window=window)
    theirs, tokens = take(transformers.SmolLM3ForCausalLM(config), ours), draw(2, 31)
    close(ours(tokens)[0], theirs(tokens).logits)


@torch.no_grad()
def test_a_layer_of_either_kind_is_one_of_llama():
    transformers = pytest.importorskip("transformers")
    original, tokens = trained(), draw(2, 31)
    theirs = take(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), original)
    close(original(tokens)[0], theirs(tokens).logits)
    local = swan(original, window=31).stack.layers[2]
    x = torch.randn(2, 31, 32)
    places = torch.arange(31).expand(2, -1)
    for ours, positions in ((local, places), (swan(original).stack.layers[0], places * 0)):
        layer = theirs.model.layers[1 if ours is local else 0]
        mask = torch.full((31, 31), -torch.inf).triu(1)[None, None]
        turn = theirs.model.rotary_emb(x, positions)
        expected = layer.self_attn(layer.input_layernorm(x), position_embeddings=turn, attention_mask=mask)[0]
        close(ours(x)[0] - x, expected)


@torch.no_grad()
def test_tokens_that_are_not_seen_shift_nothing():
    model = scaled(swan(trained(), window=5), LogSlope(8, b=0.5)).eval()
    tokens, before = draw(1, 30), draw(1, 11)
    number = torch.tensor([[0] * 11 + [1] * 30])
    behind = model(torch.cat([before, tokens], 1), None, Layout.numbered(number))[0][:, 11:]
    close(behind, model(tokens)[0])


@torch.no_grad()
def test_the_ring_decodes_what_a_whole_pass_gives():
    window, law = 6, LogScaling(8)
    model, tokens = scaled(swan(trained(), window=window), law), draw(2, 3 * 6 + 5)
    whole, (logits, state) = model(tokens)[0], token_by_token(model, tokens)
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))
    kept = [t.shape[1] for t in state_tensors(state) if t.numel()]
    assert kept == [23, 23, *[window - 1] * 6]  # keys and values of the global layer, and of three windows


@pytest.mark.parametrize(
    ("layers", "period", "expected"),
    [
        (LLAMA, 4, "1*(attention(G) + mlp + 3*(attention(L) + mlp))"),
        ("8*(attention + mlp)", 4, "2*(attention(G) + mlp + 3*(attention(L) + mlp))"),
        (
            "6*(attention + mlp)",
            4,
            "attention(G) + mlp + 3*(attention(L) + mlp) + attention(G) + mlp + attention(L) + mlp",
        ),
        ("attention + mlp + 2*(attention + mlp)", 2, "attention(G) + mlp + attention(L) + mlp + attention(G) + mlp"),
        ("2*attention", 1, "2*attention(G)"),
    ],
)
def test_every_period_begins_with_a_global_layer(layers, period, expected):
    model = trained(layers)
    converted = swan(model, window=7, period=period)
    kinds = [("G" if part.position is None else "L", part.window) for part in module.attention_layers(converted)]
    assert kinds == [("G", None) if n % period == 0 else ("L", 7) for n in range(len(kinds))]
    for (name, ours), (other, theirs) in zip(converted.named_parameters(), model.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
    if layers != LLAMA:
        text = expected.replace("(G)", "(position=none)").replace("(L)", "(window=7)")
        assert converted.config["layers"] == text


def test_scales_are_written_into_global_layers_alone(tmp_path):
    from lengthwise.models.loading import load

    model = scaled(swan(trained(), window=7), LogSlope(16, b=0.25))
    model.save(tmp_path)
    found = [part.temperature for part in module.attention_layers(load(tmp_path))]
    assert found == [LogSlope(16, b=0.25), None, None, None]
    assert [part.temperature for part in module.attention_layers(scaled(model, None))] == [None] * 4


def test_laws_are_fitted_to_factors_that_follow_them():
    middles = [100.0, 300.0, 1000.0]
    slope = [1 + 0.2 * math.log(n / 64) for n in middles]
    assert fit_slope(64, middles, slope).b == pytest.approx(0.2)
    assert fit_slope(64, middles, [1.0, 0.9, 1.0]).b == 0
    offset = [math.log(50 + n) / math.log(50 + 64) for n in middles]
    assert fit_offset(64, middles, offset).a == pytest.approx(50, rel=0.01)
    flat = fit_offset(64, middles, [1.0] * 3)
    assert float(flat.factor(torch.tensor([[999]]), False)) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_the_best_factor_of_each_window_has_the_lowest_nats():
    model, texts = swan(trained(), window=5), draw(4, 33)
    windows, factors = [(16, 24), (24, 32)], [1.0, 1.5, 3.0]
    table = []
    for factor in factors:
        copy = swan(trained(), window=5)
        copy.stack.layers[0].part.q_proj.weight.mul_(factor)
        nats = functional.cross_entropy(copy(texts[:, :-1])[0].transpose(1, 2), texts[:, 1:], reduction="none").mean(0)
        table.append([float(nats[begin:end].mean()) for begin, end in windows])
    best = [factors[min(range(3), key=lambda f: table[f][w])] for w in range(2)]
    assert best_factors(model, texts, windows, factors) == best
    law = fit_scale(model, texts, windows, trained=16, factors=factors)
    assert law == fit_slope(16, [20.5, 28.5], best)
    assert all(layer.temperature is None for layer in module.attention_layers(model))
    assert isinstance(fit_scale(model, texts, windows, trained=16, law="log_scaling", factors=[1.0]), LogScaling)


@torch.no_grad()
def test_texts_are_read_in_chunks(monkeypatch):
    model, text = swan(trained(), window=5), draw(60)
    whole = nats_by_position(model, text[None])
    expected = [float(nats_by_position(model, text[None, : n + 1])[-8:].mean().exp()) for n in (20, 50)]
    monkeypatch.setattr(module, "CHUNK", 7)
    torch.testing.assert_close(nats_by_position(model, text[None]), whole)
    assert perplexity_beyond(model, text, (20, 50), last=8) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swan(trained(), window=0), "at least 1"),
        (lambda: swan(trained(position="none")), "rotary"),
        (lambda: swan(trained(position="alibi")), "rotary"),
        (lambda: swan(trained("2*(attention(window=4) + mlp)")), "narrowed already"),
        (lambda: swan(trained("post_norm(attention + mlp)")), "combinator"),
        (lambda: scaled(trained(), LogSlope(4)), "no global attention"),
        (lambda: fit_scale(swan(trained()), draw(2, 20), [(10, 12)], 4, law="yarn"), "law"),
        (lambda: fit_scale(swan(trained()), draw(2, 20), [(10, 21)], 4), "within the 19"),
        (lambda: fit_scale(swan(trained()), draw(2, 20), [(10, 12)], 16, factors=[1.0]), "beyond the trained"),
        (lambda: perplexity_beyond(trained(), draw(20), [20], 5), "shorter than"),
    ],
)
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
