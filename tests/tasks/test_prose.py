"""Docstrings and comments, and nothing else of a program."""

import ast
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.tasks.corpus import Corpus, Document, standard_library
from lengthwise.tasks.prose import docstrings_and_comments, prose

PROGRAM = '''"""What it is.

    An example.
"""
# before
class A:  # beside
    """Of a class."""

    text = "# no comment"

    async def f(self):
        """Of a method,
        on two lines."""
        "no docstring"
        return 1  ## last
'''


def corpus(**texts):
    documents = [Document(name, np.frombuffer(text, dtype=np.uint8)) for name, text in texts.items()]
    return Corpus(tuple(documents))


def test_all_prose_in_its_order():
    assert docstrings_and_comments(PROGRAM.encode()).splitlines() == [
        *("What it is.", "", "An example."),
        *("before", "beside", "Of a class."),
        *("Of a method,", "on two lines.", "last"),
    ]


words = st.text("abc ü", min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.tuples(words, st.booleans(), st.integers(0, 3)), min_size=1, max_size=8))
def test_a_program_made_of_prose_gives_it_back(texts):
    lines = []
    for number, (text, comment, code) in enumerate(texts):
        lines += [f"x = {number}"] * code
        lines += [f"# {text}"] if comment else [f"def f{number}():", f'    """{text}"""']
    found = docstrings_and_comments("\n".join(lines).encode())
    assert found.splitlines() == [text for text, _, _ in texts]


def test_what_is_not_python_or_has_no_prose_is_noted():
    found = prose(corpus(a=b"# a", b=b"x = (", c=b"x = 1", d=b"x\0", e=b"'''e'''"))
    assert [(d.name, d.tokens.tobytes()) for d in found.documents] == [("a", b"a\n"), ("e", b"e\n")]
    assert [re.match(r"\w (isn't Python|has no docstring)", note) is not None for note in found.notes] == [True] * 3
    with pytest.raises(InputError, match="none of 1 documents"):
        prose(corpus(c=b"x = 1"))
    with pytest.raises(InputError, match="vocabulary of 300"):
        prose(Corpus((), 300))


def test_the_standard_library_has_prose():
    library = standard_library().select(lambda name: name in ("ast.py", "textwrap.py"))
    assert [d.name for d in library.documents] == ["ast.py", "textwrap.py"]
    found = prose(library)
    text = found.documents[1].tokens.tobytes().decode()
    assert ast.get_docstring(ast.parse(library.documents[1].tokens.tobytes())) in text
    assert "def wrap" not in text
    assert len(library) / 20 < len(found) < len(library)
