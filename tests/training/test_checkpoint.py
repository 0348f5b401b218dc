import pytest

from lengthwise.errors import InputError
from lengthwise.training.checkpoint import (
    BEST,
    LAST,
    find_checkpoint,
    linked,
    place_of,
    point_to,
    remove_unlinked,
    whole_or_nothing,
)


def write(run, step, text="{}"):
    with whole_or_nothing(run, step) as folder:
        (folder / "model.safetensors").write_text("weights")
        if text is KeyboardInterrupt:
            raise text
        (folder / "config.json").write_text(text)
    point_to(run, LAST, step)


def test_a_checkpoint_has_no_name_until_it_is_complete(tmp_path):
    write(tmp_path, 1)
    with whole_or_nothing(tmp_path, 2) as folder:
        (folder / "config.json").write_text("half")
        assert not place_of(tmp_path, 2).exists()
        assert linked(tmp_path, LAST).name == "step-00000001"
    assert place_of(tmp_path, 2).exists()


def test_what_fails_leaves_nothing_behind(tmp_path):
    write(tmp_path, 1, "first")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, KeyboardInterrupt)
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert (tmp_path / LAST / "config.json").read_text() == "first"


def test_last_and_best_are_kept_and_the_rest_is_removed(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    point_to(tmp_path, BEST, 1)
    (tmp_path / "checkpoints" / ".step-00000009.writing").mkdir()
    remove_unlinked(tmp_path)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000003"]


def test_a_run_moved_elsewhere_keeps_its_links(tmp_path):
    write(tmp_path / "a", 4)
    (tmp_path / "a").rename(tmp_path / "b")
    assert linked(tmp_path / "b", LAST) == place_of(tmp_path / "b", 4).resolve()


def test_the_best_checkpoint_of_a_run_is_found_before_the_last(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        find_checkpoint(tmp_path / "none")
    write(tmp_path, 1)
    write(tmp_path, 2)
    assert find_checkpoint(tmp_path).name == "step-00000002"
    point_to(tmp_path, BEST, 1)
    assert find_checkpoint(tmp_path).name == "step-00000001"
    assert find_checkpoint(place_of(tmp_path, 2)) == place_of(tmp_path, 2)
