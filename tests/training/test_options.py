import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.options.training import TrainOptions, from_mapping, read_config, to_mapping

VALUES = st.fixed_dictionaries(
    {},
    optional={
        "layers": st.text("abc+*() 1", max_size=8),
        "data": st.lists(st.text("ab/", min_size=1, max_size=5).map(Path), max_size=3).map(tuple),
        "tokenizer": st.none() | st.just(Path("t.json")),
        "steps": st.integers(1, 10**9),
        "learning_rate": st.floats(1e-9, 10),
        "carry_state": st.booleans(),
        "precision": st.sampled_from(["auto", "float32", "bfloat16"]),
    },
)


@given(VALUES)
def test_settings_survive_the_way_through_yaml(values):
    options = TrainOptions(**values)
    again = from_mapping(yaml.safe_load(yaml.safe_dump(to_mapping(options))), TrainOptions, None, "the file")
    assert again == options


def test_a_file_of_settings_lies_over_the_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("learning-rate: 3e-4\nsteps: 50\ndata: texts/\nlayers: 2*mamba\n")
    read = read_config(file, TrainOptions)
    expected = TrainOptions(learning_rate=3e-4, steps=50, data=(Path("texts/"),), layers="2*mamba")
    assert read == expected
    base = dataclasses.replace(expected, dim=7, steps=3)
    assert read_config(file, TrainOptions, base) == dataclasses.replace(base, steps=50)
    file.write_text("")
    assert read_config(file, TrainOptions) == TrainOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes: 3", "'stpes'; did you mean steps"),
        ("steps: many", "steps in .* must be int, got 'many'"),
        ("steps: 2.5", "steps in .* must be int, got 2.5"),
        ("steps: true", "steps in .* must be int, got True"),
        ("tie: 1", "tie in .* must be bool, got 1"),
        ("layers: [a]", "layers in .* must be str"),
        ("precision: bfloat", "'bfloat'; did you mean bfloat16"),
        ("- a\n- b", "must hold settings"),
        ("a: [", "is not a YAML file"),
        ("config: other.yaml", "'config'"),
    ],
)
def test_what_does_not_fit_is_said(text, message, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(file, TrainOptions)


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_config(tmp_path / "none.yaml", TrainOptions)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match="not a YAML file"):
        read_config(tmp_path / "binary.yaml", TrainOptions)
