"""Views of a sequence through shared weights: each as it would be alone, and the base they come from."""

import pytest
import torch

from lengthwise import laws
from lengthwise.contract import Layout, state_tensors
from lengthwise.conversion.perspectives import add_perspectives, train_only
from lengthwise.errors import InputError
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.loading import load
from lengthwise.models.states import load_state, save_state

BASE = "layernorm + 2*(rwkv + rwkv_channels)"


def stirred(model, only=None):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters() if only is None else only:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double()


@pytest.fixture
def base():
    torch.manual_seed(0)
    return stirred(LanguageModel(17, 8, BASE, "none", "layernorm"))


@pytest.fixture
def tokens():
    return torch.randint(0, 17, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("blend", ["learned", "average"])
def test_equal_views_are_the_base(base, tokens, views, blend):
    model = add_perspectives(base, views, blend)
    torch.testing.assert_close(model(tokens)[0], base(tokens)[0], rtol=0, atol=1e-12 if views == 1 else 1e-10)


@torch.no_grad()
def test_one_view_is_the_base_whatever_its_weights(base, tokens):
    model = add_perspectives(base, 1)
    own = train_only(model)
    stirred(model, own)
    for here, there in zip(own, vectors(base), strict=False):
        there.copy_(here[0])
    assert torch.equal(model(tokens)[0], base(tokens)[0])


def vectors(model):
    """The mixing vectors of a model, in order."""
    parts = [module for module in model.modules() if hasattr(module, "viewed")]
    return [getattr(part, name) for part in parts for name in part.viewed]


@torch.no_grad()
def test_views_are_models_of_their_own_blended_by_their_mean(base, tokens):
    model = add_perspectives(base, 3)
    stirred(model, train_only(model))
    hidden = []
    for view in range(3):
        for alone, several in zip(vectors(base), vectors(model), strict=True):
            alone.copy_(several[view])
        hidden.append(base.hidden(tokens)[0])
    weights = model.stack.layers[0].blend(sum(hidden) / 3).softmax(-1)
    expected = sum(weights[..., i : i + 1] * base.head(h) for i, h in enumerate(hidden))
    torch.testing.assert_close(model(tokens)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("cut", [0, 1, 5, 12])
def test_unequal_views_go_on_and_keep_documents_apart(base, tokens, cut, tmp_path):
    model = add_perspectives(base, 3)
    stirred(model, train_only(model))
    layout = Layout.packed([[4, 8], [12]])
    whole, _ = model(tokens, None, layout)
    first, state = model(tokens[:, :cut], None, layout.slice(0, cut))
    assert all(len(t) == 2 for t in state_tensors(state))
    save_state(state, tmp_path / "state.safetensors")
    state, _ = load_state(tmp_path / "state.safetensors")
    second, _ = model(tokens[:, cut:], state, layout.slice(cut))
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(whole[:1, 4:], model(tokens[:1, 4:])[0])
    _, state = model(tokens[:, :6])
    swapped, _ = model(tokens[:, 6:].flip(0), state.select(torch.tensor([1, 0])))
    torch.testing.assert_close(swapped.flip(0), model(tokens[:, 6:], state)[0])


def test_what_is_trained(base, tokens):
    model = add_perspectives(base, 3)
    own = train_only(model, "perspectives")
    assert sum(p.numel() for p in own) == 3 * 5 * 2 * 8 + 3 * 8
    assert all(p.no_weight_decay for p in own[:-1])
    assert {p for p in model.parameters() if p.requires_grad} == set(own)
    model(tokens)[0].square().mean().backward()
    views = own[0].grad
    assert not torch.allclose(views[0], views[1])  # W_b sets equal views apart
    train_only(model, "all")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(InputError, match="no perspectives"):
        train_only(base)
    with pytest.raises(InputError, match="all"):
        train_only(model, "some")


def test_saved_and_loaded(base, tokens, tmp_path):
    model = add_perspectives(base.float(), 2)
    stirred(model, train_only(model)).float()
    model.save(tmp_path)
    assert torch.equal(load(tmp_path)(tokens)[0], model(tokens)[0])


def test_layers_of_one_part_in_a_model_of_others(base):
    """A combinator is one layer like any other, and what has no vectors of a view's own is the same in all."""
    laws.check(build("perspectives(chain(rwkv + mamba), views=2) + mlp", dim=8), laws=["resumable", "packed", "growth"])
    laws.check(build("perspectives(rwkv + attention(heads=2), views=2)", dim=8), laws=["resumable", "value", "growth"])
    model = build("perspectives(bidirectional(rwkv), views=2)", dim=8, causal=False)
    assert model(torch.randn(1, 5, 8))[1] is None
    assert LanguageModel(17, 8, "perspectives(rwkv)", "none").norm.state_dict() == {}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("perspectives(mamba)", "no part of these layers"),
        ("perspectives(rwkv, views=0)", "views must be at least 1, got 0"),
        ("perspectives(rwkv, blend=largest)", "average"),
        ("perspectives(rwkv, view=2)", "views"),
        ("perspectives(views=2)", "takes layers"),
    ],
)
def test_errors(expression, message):
    with pytest.raises(InputError, match=message):
        build(expression, dim=8)
