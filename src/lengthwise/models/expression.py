"""The language that models are written in, parsed and never evaluated as code.

    expression := term { "+" term }                      one after the other
    term       := integer "*" factor | factor            n times, each with weights of its own
    factor     := "(" expression ")" | leaf
    leaf       := name [ "(" [ argument { "," argument } ] ")" ]
    argument   := [ name "=" ] value
    value      := number | "text" | true | false | none | expression | list | value "&" value | value "|" value
    list       := "[" [ value { "," value } ] "]"       of numbers, texts and lists of these

`12*(attention + swiglu)` is a Transformer, `6*(3*mamba + attention(window=512, position=rope(base=10000)) + swiglu)` a
hybrid. `&` binds tighter than `|`, and both stand only inside arguments: they combine patterns.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from lengthwise.errors import InputError


@dataclass(frozen=True)
class Leaf:
    """A name with its arguments. `place` is where it stands in the source, for messages."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    place: int = field(default=0, compare=False)

    def __str__(self) -> str:
        parts = [show(value) for value in self.args] + [f"{name}={show(value)}" for name, value in self.kwargs]
        return f"{self.name}({', '.join(parts)})" if parts else self.name


@dataclass(frozen=True)
class Sum:
    """Expressions one after the other."""

    terms: tuple[Expression, ...]

    def __str__(self) -> str:
        return " + ".join(str(term) for term in self.terms)


@dataclass(frozen=True)
class Repeat:
    """An expression `count` times."""

    count: int
    body: Expression

    def __str__(self) -> str:
        return f"{self.count}*{self.body}" if isinstance(self.body, Leaf) else f"{self.count}*({self.body})"


@dataclass(frozen=True)
class Combine:
    """Two values joined by `&` or `|`."""

    operator: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"({show(self.left)} {self.operator} {show(self.right)})"


Expression = Leaf | Sum | Repeat
WORDS = {"true": True, "false": False, "none": None}


def show(value: Any) -> str:
    """A value as the language writes it."""
    if isinstance(value, (Leaf, Sum, Repeat, Combine)):
        return str(value)
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"[{', '.join(map(show, value))}]"
    return json.dumps(value)


TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)
    | (?P<name>[A-Za-z_]\w*)
    | (?P<text>"[^"\\]*(?:\\.[^"\\]*)*" | '[^'\\]*')
    | (?P<sign>[-+*(),=&|[\]])
    )""",
    re.VERBOSE,
)
DEPTH_LIMIT = 50
COUNT_LIMIT = 10_000


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, source: str):
        self.source = source
        self.tokens: list[tuple[str, str, int]] = []
        self.next = 0
        self.depth = 0
        place = 0
        end = len(source.rstrip())
        while place < end:
            match = TOKEN.match(source, place)
            if match is None or match.end() == place:
                at = place + len(source[place:]) - len(source[place:].lstrip())
                raise self.error(f"{source[at]!r} can't stand here", at)
            kind = match.lastgroup or ""
            self.tokens.append((kind, match.group(kind), match.start(kind)))
            place = match.end()
        self.tokens.append(("end", "", end))

    def error(self, message: str, place: int) -> InputError:
        return point(self.source, place, message)

    def peek(self) -> str:
        kind, text, _ = self.tokens[self.next]
        return text if kind == "sign" else kind

    def take(self) -> tuple[str, str, int]:
        token = self.tokens[self.next]
        self.next = min(self.next + 1, len(self.tokens) - 1)
        return token

    def expect(self, sign: str, why: str) -> None:
        kind, text, place = self.take()
        if kind != "sign" or text != sign:
            raise self.error(f"expected {sign!r} {why}, found {text or 'the end'!r}", place)

    def expression(self) -> Expression:
        found = [self.term()]
        while self.peek() == "+":
            self.take()
            found.append(self.term())
        terms = [inner for term in found for inner in (term.terms if isinstance(term, Sum) else (term,))]
        return terms[0] if len(terms) == 1 else Sum(tuple(terms))

    def term(self) -> Expression:
        if self.peek() != "number":
            return self.factor()
        _, text, place = self.take()
        if not text.isdigit() or not 1 <= int(text) <= COUNT_LIMIT:
            raise self.error(f"a repeat count must be a whole number from 1 to {COUNT_LIMIT}, got {text}", place)
        self.expect("*", "after a repeat count")
        return Repeat(int(text), self.factor())

    def factor(self) -> Expression:
        if self.peek() != "(":
            return self.leaf()
        self.enter()
        self.take()
        inside = self.expression()
        self.expect(")", "to close the group")
        self.depth -= 1
        return inside

    def enter(self) -> None:
        self.depth += 1
        if self.depth > DEPTH_LIMIT:
            raise self.error(f"an expression can be nested {DEPTH_LIMIT} deep at most", self.tokens[self.next][2])

    def leaf(self) -> Leaf:
        kind, name, place = self.take()
        if kind != "name":
            raise self.error(f"expected the name of a part, found {name or 'the end'!r}", place)
        if self.peek() != "(":
            return Leaf(name, place=place)
        self.enter()
        self.take()
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        while self.peek() != ")":
            self.argument(args, kwargs)
            if self.peek() != ",":
                break
            self.take()
        self.expect(")", f"to close the arguments of {name}")
        self.depth -= 1
        return Leaf(name, tuple(args), tuple(kwargs.items()), place)

    def argument(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        kind, name, place = self.tokens[self.next]
        named = kind == "name" and self.tokens[self.next + 1][:2] == ("sign", "=")
        if not named:
            args.append(self.either())
            return
        self.take()
        self.take()
        if name in kwargs:
            raise self.error(f"argument {name!r} is given twice", place)
        kwargs[name] = self.either()

    def either(self) -> Any:
        value = self.both()
        while self.peek() == "|":
            self.take()
            value = Combine("|", value, self.both())
        return value

    def both(self) -> Any:
        value = self.value()
        while self.peek() == "&":
            self.take()
            value = Combine("&", value, self.value())
        return value

    def value(self) -> Any:
        kind, text, _ = self.tokens[self.next]
        if kind == "text":
            self.take()
            return json.loads(text) if text.startswith('"') else text[1:-1]
        if kind == "number" and self.tokens[self.next + 1][:2] != ("sign", "*"):
            self.take()
            return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        if kind == "name" and text in WORDS and self.tokens[self.next + 1][:2] != ("sign", "("):
            self.take()
            return WORDS[text]
        if kind == "sign" and text == "(":
            return self.group()
        if kind == "sign" and text == "[":
            return self.items()
        return self.expression()

    def items(self) -> tuple[Any, ...]:
        """A list of plain values."""
        self.enter()
        self.take()
        found: list[Any] = []
        while self.peek() != "]":
            place = self.tokens[self.next][2]
            found.append(self.value())
            if isinstance(found[-1], Leaf | Sum | Repeat | Combine):
                raise self.error(f"a list holds numbers and texts, got {found[-1]}", place)
            if self.peek() != ",":
                break
            self.take()
        self.expect("]", "to close the list")
        self.depth -= 1
        return tuple(found)

    def group(self) -> Any:
        """A parenthesis among arguments: a combination of patterns, or an expression."""
        mark, depth = self.next, self.depth
        self.enter()
        self.take()
        inside = self.either()
        self.expect(")", "to close the group")
        self.depth -= 1
        if isinstance(inside, Combine):
            return inside
        self.next, self.depth = mark, depth
        return self.expression()


def point(source: str, place: int, message: str) -> InputError:
    """The error for one place of an expression, with the place underlined."""
    return InputError(f"{message}, at character {place + 1} of the expression:\n  {source}\n  {' ' * place}^")


def parse(source: str) -> Expression:
    """The tree of an expression. Raises InputError that points at the place of a mistake."""
    if not isinstance(source, str):
        raise InputError(f'an expression is a text, as "4*(attention + swiglu)", got {source!r}')
    if not source.strip():
        raise InputError('the expression is empty; write for example "4*(attention + swiglu)"')
    if "\n" in source:
        source = " ".join(source.split("\n"))
    parser = _Parser(source)
    tree = parser.expression()
    kind, text, place = parser.take()
    if kind != "end":
        raise parser.error(f"expected '+' or the end, found {text!r}", place)
    return tree
