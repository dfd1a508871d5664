"""Finds code that asks which method it is, or lists methods, in the syntax trees of Python and the tokens of JavaScript."""

import ast
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from trainer_core.config import METHODS, SETTINGS

NAMES = frozenset((*METHODS, *(each.title for each in SETTINGS)))
CLASSES = frozenset(f"{each.title}{kind}" for each in SETTINGS for kind in ("", "Settings", "Config", "JobSpec"))
_FACTS = {"method_name", "title"}
_SEARCHES_IN_TEXT = {"startswith", "endswith", "count", "find", "get"}


class Finding(NamedTuple):
    """A place: its line, and what it does."""

    line: int
    what: str


# -- Python


def in_python(source: str) -> list[Finding]:
    """What a module does. An assertion may state a method's name: what it expects is no condition."""
    tree = ast.parse(source)
    expected = {id(node) for each in ast.walk(tree) if isinstance(each, ast.Assert) for node in _stated(each.test)}
    return sorted({found for node in ast.walk(tree) for found in _of_node(node, is_expected=id(node) in expected)})


def _stated(test: ast.expr) -> Iterator[ast.AST]:
    """Nodes of an assertion that state what is expected: all but conditions within it."""
    yield test
    if not isinstance(test, ast.BoolOp | ast.IfExp):
        for child in ast.iter_child_nodes(test):
            if isinstance(child, ast.expr):
                yield from _stated(child)


def _of_node(node: ast.AST, *, is_expected: bool) -> Iterator[Finding]:
    if isinstance(node, ast.expr | ast.pattern):
        if not is_expected and _is_condition(node):
            yield Finding(node.lineno, "asks which method it is")
        if _is_table(node) or (not is_expected and _is_list(node)):
            yield Finding(node.lineno, "lists methods")


def _is_condition(node: ast.AST) -> bool:
    match node:
        case ast.Compare(left=left, comparators=others):
            sides = [one for each in (left, *others) for one in (each, *_elements(each))]
            return any(_is_name(one) or _is_class(one) for one in sides)
        case ast.MatchValue(value=value):
            return _is_name(value)
        case ast.MatchClass(cls=kind):
            return _is_class(kind)
        case ast.Call(func=ast.Attribute(attr=attribute, value=held), args=[asked, *_]) if attribute in _SEARCHES_IN_TEXT:
            # A look into a table of one method is the same question.
            is_table = isinstance(held, ast.Dict) and any(map(_is_name, held.keys))
            return is_table or (attribute != "get" and any(map(_is_name, (asked, *_elements(asked)))))
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kind]):
            return any(map(_is_class, (kind, *_elements(kind))))
        case _:
            return False


def _is_table(node: ast.AST) -> bool:
    match node:
        case ast.Call(keywords=keywords) if sum(each.arg in NAMES for each in keywords) > 1:
            return True
        case ast.Call(func=ast.Name(id="dict"), args=[ast.List(elts=rows) | ast.Tuple(elts=rows)]):
            return sum(any(map(_is_name, _elements(row)[:1])) for row in rows) > 1
        case ast.Dict(keys=keys, values=values):
            return sum(map(_is_name, keys)) > 1 or sum(map(_is_class, (*keys, *values))) > 1
        case _:
            return False


def _is_list(node: ast.AST) -> bool:
    match node:
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return sum(map(_is_name, elements)) > 1 or sum(map(_is_class, elements)) > 1
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _is_class(left) and _is_class(right)
        case _:
            return False


def _elements(node: ast.expr) -> list[ast.expr]:
    """Of a collection, also one of a constructor's argument, or the keys of a table."""
    match node:
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return elements
        case ast.Dict(keys=keys):
            return [key for key in keys if key]
        case ast.Call(func=ast.Name(id="set" | "frozenset" | "tuple" | "list"), args=[held]):
            return _elements(held)
        case _:
            return []


def _is_name(node: Any) -> bool:
    match node:
        case ast.Constant(value=str(text)):
            return text in NAMES
        case ast.Attribute(value=held, attr=fact):
            return fact in _FACTS and _is_class(held)
        case _:
            return False


def _is_class(node: Any) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
    return name in CLASSES


# -- JavaScript

_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`[^`$\\]*`)"""
    r"|(?P<word>[A-Za-z_$][\w$]*)|(?P<mark>[=!]==?|[^\s\w])",
    re.DOTALL,
)
_EQUALITIES = {"===", "!==", "==", "!="}
_SEARCHES = {"includes", "startsWith", "endsWith", "has", "indexOf", "match", "search", "localeCompare"}
_SEARCHES_IN_LISTS = {"includes", "indexOf", "has"}


def in_javascript(source: str) -> list[Finding]:
    """The same in a script: comparisons, cases and searches for a method's name; arrays and objects of several."""
    tokens = [
        (match.lastgroup, match[0], source.count("\n", 0, match.start()) + 1)
        for match in _TOKEN.finditer(source)
        if match.lastgroup != "comment"
    ]
    found: set[Finding] = set()
    # Each open bracket with the line that it is on and the names directly in it.
    open_brackets: list[tuple[int, set[str]]] = [(0, set())]
    for at, (kind, token, line) in enumerate(tokens):
        before, after = (tokens[i][1] if 0 <= i < len(tokens) else "" for i in (at - 1, at + 1))
        if kind == "mark" and token in "([{":
            open_brackets.append((line, set()))
        elif kind == "mark" and token in ")]}" and len(open_brackets) > 1:
            began, names = open_brackets.pop()
            if len(names) > 1:
                found.add(Finding(began, "lists methods"))
            ahead = [one for _, one, _ in tokens[at + 1 : at + 4] if one not in (")", ".")]
            if names and token == "]" and ahead and ahead[0] in _SEARCHES_IN_LISTS:
                found.add(Finding(line, "asks which method it is"))
            if token == "]" and after in (",", "]"):
                # An entry of a list: a table may be written as one.
                open_brackets[-1][1].update(names)
        name = token[1:-1] if kind == "text" else token
        if name not in NAMES or kind not in ("text", "word"):
            continue
        if kind == "word" and before == after == "/":
            found.add(Finding(line, "asks which method it is"))
        if kind == "text":
            is_search = before == "(" and at > 1 and tokens[at - 2][1] in _SEARCHES
            if {before, after} & _EQUALITIES or before == "case" or is_search:
                found.add(Finding(line, "asks which method it is"))
        if (kind == "text" and before in ("[", ",", "(")) or after == ":":
            open_brackets[-1][1].add(name)
    return sorted(found)
