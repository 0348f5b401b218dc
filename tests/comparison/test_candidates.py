import pytest

from lengthwise.comparison.candidates import DEFAULT, contenders, with_count
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


def test_a_system_without_layers_and_an_unknown_one_are_errors():
    with pytest.raises(InputError, match="roformer"):
        contenders([], ["rofomer"])
