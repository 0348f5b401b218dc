import pytest

from lengthwise.comparison.candidates import DEFAULT, contenders, count_of, with_count
from lengthwise.errors import InputError


def test_without_any_there_are_six():
    found = contenders([], [])
    assert found == list(DEFAULT)
    assert len(found) == 6


def test_a_name_stands_before_a_colon():
    found = contenders(
        ["my hybrid: 2*(mamba + attention(window=16))", "attention(position=rope(base=10000)) + swiglu"], []
    )
    assert [c.name for c in found] == ["my hybrid", "attention(position=rope(base=10000)) + swiglu"]
    assert found[0].layers == "2*(mamba + attention(window=16))"


def test_a_typo_is_pointed_at():
    with pytest.raises(InputError, match="at character 12"):
        contenders(["attention ++ swiglu"], [])


def test_the_same_name_twice_is_an_error():
    with pytest.raises(InputError, match="two candidates are called 'mamba'"):
        contenders(["mamba", "mamba: 2*mamba"], [])


def test_systems_give_their_layers_with_a_free_depth():
    (found,) = contenders([], ["roformer"])
    assert found.name == "roformer"
    assert "attention" in found.layers
    assert found.flexible
    assert with_count(found.layers, 2).startswith("2*(")


@pytest.mark.parametrize(
    ("layers", "count", "shallower"),
    [
        ("layernorm + 12*(rwkv + mlp)", 12, "layernorm + 3*(rwkv + mlp)"),
        ("24*two_hop(megalodon + swiglu) + timestep_norm", 24, "3*two_hop(megalodon + swiglu) + timestep_norm"),
        (
            "perspectives(layernorm + 6*(2*rwkv + mlp), views=2)",
            6,
            "perspectives(layernorm + 3*(2*rwkv + mlp), views=2)",
        ),
    ],
)
def test_the_depth_is_free_wherever_one_count_says_it(layers, count, shallower):
    assert count_of(layers) == count
    assert with_count(layers, 3) == shallower


@pytest.mark.parametrize("layers", ["attention + swiglu", "2*mamba + 3*attention"])
def test_without_one_count_the_depth_is_fixed(layers):
    assert count_of(layers) is None


def test_a_system_without_layers_and_an_unknown_one_are_errors():
    with pytest.raises(InputError, match="roformer"):
        contenders([], ["rofomer"])
