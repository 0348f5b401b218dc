"""The expression language: what is parsed prints back to itself, and mistakes are placed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.models.expression import Combine, Leaf, Repeat, Sum, parse

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda n: n not in ("true", "false", "none"))
PLAIN = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8),
)


def leaves(values):
    kwargs = st.dictionaries(NAMES, values, max_size=2).map(lambda d: tuple(d.items()))
    return st.builds(Leaf, NAMES, st.lists(values, max_size=2).map(tuple), kwargs)


PATTERN = st.recursive(
    leaves(st.integers(1, 99)), lambda inner: st.builds(Combine, st.sampled_from("&|"), inner, inner), max_leaves=4
)
TREE = st.recursive(
    leaves(PLAIN | PATTERN | st.lists(PLAIN, max_size=3).map(tuple)),
    lambda inner: st.one_of(
        st.lists(inner.filter(lambda t: not isinstance(t, Sum)), min_size=2, max_size=3).map(
            lambda terms: Sum(tuple(terms))
        ),
        st.builds(Repeat, st.integers(1, 99), inner),
        leaves(inner),
    ),
    max_leaves=8,
)


@given(TREE)
def test_what_is_printed_is_parsed_back(tree):
    assert parse(str(tree)) == tree


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_in_one_way(text):
    try:
        tree = parse(text)
    except InputError:
        return
    assert parse(str(tree)) == tree


def test_precedence_and_grouping():
    assert parse("2*a + b") == Sum((Repeat(2, Leaf("a")), Leaf("b")))
    assert parse("2*(a + b)") == Repeat(2, Sum((Leaf("a"), Leaf("b"))))
    pattern = Combine("|", Combine("&", Leaf("x"), Leaf("y")), Leaf("z"))
    assert parse("a(pattern=x & y | z)") == Leaf("a", (), (("pattern", pattern),))


def test_lists():
    assert parse("a(w=[2, 4], r=[], [1.5, none])") == Leaf("a", ((1.5, None),), (("w", (2, 4)), ("r", ())))


@pytest.mark.parametrize(
    ("source", "message", "place"),
    [
        ("a(w=[1, 2)", "expected ']'", 10),
        ("a(w=[1, b])", "numbers and texts, got b", 9),
        ("4*(a + b", "expected ')'", 9),
        ("a + ", "found 'the end'", 4),
        ("a b", "expected '+' or the end", 3),
        ("0*a", "whole number", 1),
        ("2.5*a", "whole number", 1),
        ("a(x=)", "name of a part", 5),
        ("a(x=1, x=2)", "given twice", 8),
        ("a $ b", "can't stand here", 3),
        ("(" * 60 + "a" + ")" * 60, "nested 50 deep", 51),
    ],
)
def test_a_mistake_is_placed(source, message, place):
    with pytest.raises(InputError) as caught:
        parse(source)
    text = str(caught.value)
    assert message in text
    assert f"at character {place} " in text
    assert text.splitlines()[-1].index("^") == place + 1


def test_an_empty_expression_says_what_to_write():
    with pytest.raises(InputError, match="empty"):
        parse("  ")
