"""The prose of source text: what a program's docstrings and comments say, without the program."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings

import numpy as np

from lengthwise.errors import InputError
from lengthwise.tasks.corpus import Corpus, Document

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def prose(corpus: Corpus) -> Corpus:
    """The docstrings and comments of each document of Python, as bytes, in the order in which they stand.

    Docstrings come without the indentation of their code, comments without their #, and each ends with a line break.
    Documents that aren't Python, and those without prose, are left out with a note. Raises InputError where none is
    left, and for a corpus that isn't made of bytes.
    """
    if corpus.vocab_size != 256:
        raise InputError(f"prose is found in bytes, but this corpus has a vocabulary of {corpus.vocab_size}")
    documents, notes = [], list(corpus.notes)
    for document in corpus.documents:
        try:
            text = docstrings_and_comments(document.tokens.tobytes())
        except (SyntaxError, ValueError, tokenize.TokenError) as error:
            notes.append(f"{document.name} isn't Python ({error})")
            continue
        if not text:
            notes.append(f"{document.name} has no docstring and no comment")
            continue
        documents.append(Document(document.name, np.frombuffer(text.encode(), dtype=np.uint8)))
    if not documents:
        raise InputError(f"none of {len(corpus.documents)} documents has a docstring or a comment of Python")
    return Corpus(tuple(documents), notes=tuple(notes))


def docstrings_and_comments(source: bytes) -> str:
    """The prose of one program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in its strings
        tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            found.append((node.body[0].lineno, docstring))
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            found.append((token.start[0], token.string.lstrip("#").strip()))
    return "".join(f"{text}\n" for _, text in sorted(found, key=lambda at: at[0]))
