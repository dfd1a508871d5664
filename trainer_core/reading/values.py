"""Parses JSON strictly: no duplicate keys, no unpaired surrogates, no number that JSON cannot represent."""

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from trainer_core.reading.limits import MAX_COLUMNS, MAX_ITEMS, MAX_ROW_DEPTH
from trainer_core.row_rules import is_text
from trainer_core.wording import Message, say

_MAX_NAME = 80
_HARMLESS = re.compile(r"'+[=+\-@\t\r]")
_HALF_LETTER = re.compile(r"\\[uU][dD][89a-fA-F]")


class RowFault(Exception):
    """Why a value cannot be a row: the key, and the reason."""

    def __init__(self, field: str, reason: Message) -> None:
        super().__init__(reason)
        self.field, self.reason = printable(field), reason


def printable(name: str) -> str:
    """A name that can be written to any output."""
    return name.encode("utf-8", "backslashreplace").decode()[:_MAX_NAME]


class _Unsayable:
    """A number that JSON cannot represent, until its key is known."""

    def __init__(self, text: str) -> None:
        self.text = text[:_MAX_NAME]


class _NotFinite(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise RowFault(name, say("duplicate_key", key=printable(name)))
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _NotFinite
    return value


def _refuse(text: str) -> None:
    raise _NotFinite


def _named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, value in pairs:
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, _Unsayable):
                raise RowFault(key, say("not_finite", value=one.text))
    return {}


def _marked(text: str) -> Any:
    return _Unsayable(text) if math.isinf(float(text)) else 0.0


PLAIN = json.JSONDecoder()
_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse)
_NAMING = json.JSONDecoder(object_pairs_hook=_named, parse_float=_marked, parse_constant=_Unsayable)


def decode(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at a position, and where it ends.

    Raises `RowFault`, `json.JSONDecodeError` and, for very deep nesting, `RecursionError`.
    """
    try:
        value, end = _STRICT.raw_decode(text, start)
    except _NotFinite:
        _NAMING.raw_decode(text, start)
        raise RowFault("", say("not_finite", value="NaN")) from None
    if text.count("{", start, end) + text.count("[", start, end) > MAX_ROW_DEPTH:
        check_depth(value)
    if text.count(",", start, end) >= MAX_ITEMS:
        check_lengths(value)
    if _HALF_LETTER.search(text, start, end):
        check_letters(value)
    return value, end


def check_depth(value: Any) -> None:
    """Raises `RowFault` with the top-level key if a value is nested deeper than `MAX_ROW_DEPTH`."""
    tops = value.items() if isinstance(value, dict) else [("", value)]
    for name, top in tops:
        level = [top]
        for _ in range(MAX_ROW_DEPTH):
            level = [below for one in level for below in _children(one)]
        if level:
            raise RowFault(name, say("too_deep", most=MAX_ROW_DEPTH))


def check_lengths(value: Any) -> None:
    """Raises `RowFault` with the top-level key if a list or an object, at any depth, has more than `MAX_ITEMS` items."""
    tops = value.items() if isinstance(value, dict) else [("", value)]
    for name, top in tops:
        level = [top]
        while level:
            if any(isinstance(one, (list, dict)) and len(one) > MAX_ITEMS for one in level):
                raise RowFault(name, say("too_many_items", most=MAX_ITEMS))
            level = [below for one in level for below in _children(one)]


def check_letters(value: Any) -> None:
    """Raises `RowFault` with the top-level key if a key or a string, at any depth, contains an unpaired surrogate."""
    tops = value.items() if isinstance(value, dict) else [("", value)]
    for name, top in tops:
        level = [name, top]
        while level:
            if any(isinstance(one, str) and not is_text(one) for one in level):
                raise RowFault(name, say("half_character"))
            level = [below for one in level for below in _children(one, keys=True)]


def _children(value: Any, keys: bool = False) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
        if keys:
            yield from value
    elif isinstance(value, list):
        yield from value


def row_of_line(text: str) -> dict[str, Any]:
    """The row on a line of JSONL. Raises `RowFault`."""
    text = text.strip().removeprefix("\ufeff").strip()
    try:
        value, end = decode(text)
        if end != len(text):
            end += len(text[end:]) - len(text[end:].lstrip())
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        raise explained(error) from None
    except RecursionError:
        raise RowFault("", say("too_deep", most=MAX_ROW_DEPTH)) from None
    except ValueError:
        raise RowFault("", unreadable_number()) from None
    return as_row(value)


def as_row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowFault("", say("not_an_object"))
    if len(value) > MAX_COLUMNS:
        raise RowFault("", say("too_many_columns", most=MAX_COLUMNS))
    return value


def as_left_out(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a table of rows that an upload left out: without the apostrophes that keep its cells from being formulas.

    Such a table begins with the columns `line` and `problem`. Rows of other tables stay as they are.
    """
    if list(islice(row, 2)) != ["line", "problem"]:
        return row
    return {name: cell[1:] if isinstance(cell, str) and _HARMLESS.match(cell) else cell for name, cell in row.items()}


def explained(error: json.JSONDecodeError) -> RowFault:
    """A parser's error, explained by the mistakes that people make."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if error.msg == "Extra data" and after == ",":
        return RowFault("", say("trailing_comma"))
    if error.msg == "Extra data" and after[:1] == "{":
        return RowFault("", say("line_ends_lost"))
    if error.msg.startswith("Illegal trailing comma") or (before[-1:] == "," and after[:1] in {"]", "}"}):
        return RowFault("", say("trailing_comma"))
    if after[:1] == "'":
        return RowFault("", say("single_quotes"))
    code = next((code for begin, code in _PARSER_SAYS.items() if error.msg.startswith(begin)), "json.value")
    return RowFault("", say("not_json", problem=say(code, column=error.colno)))


# How the parser's messages begin, and our codes for them.
_PARSER_SAYS = {
    "Expecting value": "json.value",
    "Expecting property name": "json.key",
    "Expecting ',' delimiter": "json.comma",
    "Expecting ':' delimiter": "json.colon",
    "Invalid control character": "json.control",
    "Invalid \\": "json.escape",
    "Unterminated string": "json.open_text",
    "Extra data": "json.more",
}


def unreadable_number() -> Message:
    """Why the parser raises a plain `ValueError`: Python limits the digits of a whole number."""
    return say("not_json", problem=say("json.digits"))
