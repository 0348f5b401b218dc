import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder with twelve small files of text."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"number {number} says hello to the world, again and again. " * 20)
    return folder
