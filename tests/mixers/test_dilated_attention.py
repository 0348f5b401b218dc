import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.dilated_attention import DilatedAttention
from lengthwise.models.build import build
from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.states import load_state, save_state
from lengthwise.positions import RoPE
from tests.stepping import token_by_token
from tests.stirred import stir

SMALL = {"segments": (4, 10), "dilations": (1, 3), "heads": 3, "head_dim": 4}


def stirred(dim=8, **settings):
    torch.manual_seed(0)
    return stir(DilatedAttention(dim, **{**SMALL, **settings}).double())


def turned(vectors, places):
    """Heads, their two halves the parts of complex numbers, turned to their places."""
    half = vectors.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    numbers = torch.complex(vectors[..., :half], vectors[..., half:])
    numbers = numbers * torch.polar(torch.ones(()).double(), places[:, None] * rates)
    return torch.cat([numbers.real, numbers.imag], -1)


def by_definition(mixer, x):
    """One row: a softmax of each head over the keys of both branches, with rotary positions and a norm."""
    p = dict(mixer.named_parameters())
    places = torch.arange(len(x), dtype=torch.float64)
    outputs = []
    for h in range(3):
        rows = slice(4 * h, 4 * h + 4)
        q, k, v = (x @ p[f"{name}_proj.weight"][rows].T + p[f"{name}_proj.bias"][rows] for name in "qkv")
        q, k = turned(q, places), turned(k, places)
        own = []
        for i in range(len(x)):
            logits, values = [], []
            for w, r, offset in ((4, 1, 0), (10, 3, h)):
                if i % w % r == offset:
                    near = [j for j in range(i // w * w, i + 1) if j % w % r == offset]
                    logits += [q[i] @ k[j] / 2 for j in near]
                    values += [v[j] for j in near]
            own.append(torch.stack(logits).softmax(0) @ torch.stack(values))
        outputs.append(torch.stack(own))
    read = torch.cat(outputs, 1)
    read = (read - read.mean(1, keepdim=True)) / (read.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    read = read * p["norm.weight"] + p["norm.bias"]
    return read @ p["o_proj.weight"].T + p["o_proj.bias"]


def test_equals_the_formulas():
    mixer = stirred(position=RoPE(), norm="layernorm", bias=True)
    x = torch.randn(2, 23, 8, dtype=torch.float64)
    y, _ = mixer(x)
    for row, given in zip(y, x, strict=True):
        torch.testing.assert_close(row, by_definition(mixer, given), rtol=0, atol=1e-12)


def test_positions_are_those_in_the_document():
    mixer = stirred(position=RoPE())
    x = torch.randn(1, 30, 8, dtype=torch.float64)
    packed, _ = mixer(x, None, Layout.packed([[11, 19]]))
    torch.testing.assert_close(packed[:, 11:], mixer(x[:, 11:])[0], rtol=0, atol=1e-12)


def test_the_state_is_what_the_formula_says():
    mixer = stirred()
    for length in range(32):
        _, state = mixer(torch.randn(2, length, 8, dtype=torch.float64))
        assert state.nbytes == 2 * mixer.state_nbytes(length)
        sampled = [-(-max(length % 10 - offset, 0) // 3) for offset in range(3)]
        assert mixer.state_nbytes(length) == 2 * 8 * 4 * (3 * (length % 4) + sum(sampled))


def test_a_state_is_saved(tmp_path):
    mixer, x = stirred(position=RoPE()), torch.randn(2, 18, 8, dtype=torch.float64)
    _, state = mixer(x[:, :14], None, Layout.packed([[5, 9], [14]]))
    save_state(state, tmp_path / "state")
    again, _ = load_state(tmp_path / "state")
    assert torch.equal(mixer(x[:, 14:], again)[0], mixer(x[:, 14:], state)[0])


def test_in_models():
    layers = "2*(dilated_attention(heads=2, segments=[4, 8], dilations=[1, 2]) + mlp)"
    tokens = torch.randint(0, 11, (2, 19))
    model = LanguageModel(11, 16, layers, position="rope").double()
    logits, _ = model(tokens)
    torch.testing.assert_close(token_by_token(model, tokens)[0], logits, rtol=0, atol=1e-10)
    assert Encoder(11, 16, layers)(tokens)[0].shape == (2, 19, 16)


def test_bad_input():
    for expression, message in [
        ("dilated_attention(segments=[4, 8], dilations=[1])", "as many dilations"),
        ("dilated_attention(segments=[4], dilations=[2])", "must be 1"),
        ("dilated_attention(position=alibi)", "use rope"),
        ("dilated_attention(weights=detach)", "detached"),
        ("dilated_attention(norm=batchnorm)", "norm"),
        ("dilated_attention(heads=3)", "divide"),
    ]:
        with pytest.raises(InputError, match=message):
            build(expression, dim=8)
