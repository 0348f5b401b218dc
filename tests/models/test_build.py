"""From expressions to modules: what is built, what is passed down, and what mistakes say."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lengthwise as lw
from lengthwise.contract import Layout, SequenceModule
from lengthwise.errors import InputError
from lengthwise.models.build import build, build_position


class Own(SequenceModule):
    inherits = ("depth",)

    def __init__(self, dim: int, *, depth: int = 1, gain: float = 1.0):
        super().__init__()
        self.depth, self.gain = depth, gain
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x, state=None, layout=None):
        return self.gain * self.weight * x, None

    def state_nbytes(self, length):
        return 0


def test_a_single_name_is_the_bare_part_and_a_sum_is_residual_branches():
    assert type(build("mlp", dim=8)).__name__ == "MLP"
    stack = build("2*(mlp + swiglu)", dim=8)
    assert [type(layer.part).__name__ for layer in stack.layers] == ["MLP", "SwiGLU"] * 2


def test_repeated_parts_have_weights_of_their_own():
    first, second = build("2*mlp", dim=8).layers
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


def test_own_parts_stand_beside_the_librarys_and_inherit_what_they_name():
    stack = build("own(gain=2) + 2*own", dim=4, parts={"own": Own})
    assert [layer.part.gain for layer in stack.layers] == [2, 1.0, 1.0]
    assert {layer.part.depth for layer in stack.layers} == {3}


class Numbered(Own):
    inherits = ("layer", "layers", "depth")

    def __init__(self, dim: int, *, layer: int, layers: int, depth: int):
        super().__init__(dim, depth=depth)
        self.number = (layer, layers)


def test_parts_of_a_name_are_numbered_and_what_is_no_branch_does_not_count():
    stack = build("layernorm + 2*(numbered + mlp) + bidirectional(numbered)", dim=4, parts={"numbered": Numbered})
    numbered = [module for module in stack.modules() if isinstance(module, Numbered)]
    assert [module.number for module in numbered] == [(0, 3), (1, 3), (2, 3), (2, 3)]
    assert {module.depth for module in numbered} == {5}
    assert build("numbered", dim=4, parts={"numbered": Numbered}).number == (0, 1)


def test_two_hop_adds_the_second_to_what_the_first_was_given():
    torch.manual_seed(0)
    module = build("two_hop(min_gru + mlp)", dim=8)
    x = torch.randn(2, 5, 8)
    first, second = module.first, module.second
    y = x + first.part(first.norm(x))[0]
    torch.testing.assert_close(module(x)[0], x + second.part(second.norm(y))[0])


def test_a_chain_is_one_branch_of_several_parts():
    torch.manual_seed(0)
    layer = build("2*chain(min_gru + mlp)", dim=8).layers[0]
    x = torch.randn(2, 5, 8)
    first, second = layer.part.layers
    torch.testing.assert_close(layer(x)[0], x + second(first(layer.norm(x))[0])[0])


def test_a_part_that_stands_in_place_has_no_branch_and_ends_a_model_normed():
    model = lw.LanguageModel(11, 8, "rmsnorm + mlp + layernorm", position="none")
    assert [type(layer).__name__ for layer in model.stack.layers] == ["RMSNorm", "Residual", "LayerNorm"]
    assert isinstance(model.norm, nn.Identity)
    assert isinstance(lw.LanguageModel(11, 8, "layernorm + mlp", position="none").norm, nn.RMSNorm)


def test_post_norm_norms_each_sum():
    torch.manual_seed(0)
    model = lw.LanguageModel(11, 8, "layernorm + post_norm(2*(min_gru + mlp))", position="none", norm="layernorm")
    branches = model.stack.layers[1].layers
    assert len(branches) == 4
    x = torch.randn(2, 5, 8)
    expected = x
    for branch in branches:
        branch.norm.weight.data.normal_()
        expected = F.layer_norm(expected + branch.part(expected)[0], (8,), branch.norm.weight, branch.norm.bias)
    torch.testing.assert_close(model.stack.layers[1](x)[0], expected)
    assert isinstance(model.norm, nn.Identity)  # the last of them is the model's


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("atention", "did you mean attention"),
        ("attention(head=2)", "did you mean"),
        ("attention(heads=3)", "heads must divide dim"),
        ("attention(window=0)", "window must be at least 1, got 0"),
        ("attention(position=roppe)", "did you mean rope"),
        ("attention(pattern=casual() & window(4))", "did you mean causal"),
        ("attention(dim=4)", "unknown argument 'dim'"),
        ("mlp(activation=rope(base=2))", "plain value"),
        ("bidirectional(mlp, mlp)", "takes one mixer"),
        ("two_hop(mlp)", "takes two parts"),
        ("chain(mlp)", "takes parts in a row"),
        ("post_norm(mlp + layernorm)", "takes parts alone"),
        ("post_norm(mlp, 2)", "takes layers"),
        ("chain(mlp + 2*mlp)", "takes parts in a row"),
        ("two_hop(mlp + rmsnorm)", "takes two parts"),
    ],
)
def test_a_mistake_points_at_its_place(source, message):
    with pytest.raises(InputError, match=r"of the expression") as caught:
        build(f"mlp + {source}", dim=16)
    assert message in str(caught.value)
    assert str(caught.value).splitlines()[-1].index("^") >= 2 + len("mlp + ")


def test_a_causal_mixer_in_an_encoder_says_what_to_write():
    with pytest.raises(InputError, match=r"write bidirectional\(mamba\)"):
        lw.Encoder(dim=16, layers="mamba + mlp")
    assert not lw.Encoder(dim=16, layers="bidirectional(mamba) + mlp").causal


@pytest.mark.parametrize("position", ["cable", "fire", "t5", "randomised(cable)"])
def test_a_position_is_told_the_direction_of_its_layer(position):
    for causal in (True, False):
        layer = build(f"attention(causal={str(causal).lower()}, position={position})", dim=16)
        assert getattr(layer.position, "position", layer.position).causal is causal
    layer = build("attention(causal=false, position=cable(causal=true))", dim=16)
    assert layer.position.causal


def test_bidirectional_reads_each_document_backwards_on_its_own():
    torch.manual_seed(0)
    module = build("bidirectional(min_gru)", dim=8, causal=False).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    whole, state = module(x, layout=Layout.packed([[4, 5]]))
    assert state is None
    alone = torch.cat([module(x[:, :4])[0], module(x[:, 4:])[0]], dim=1)
    torch.testing.assert_close(whole, alone)


def test_positions_by_expression():
    assert build_position("rope(base=500)", dim=8).base == 500
    with pytest.raises(InputError, match="single name"):
        build_position("rope + alibi", dim=8)
