"""Detects how a JSON object at the top of a file arranges its rows."""

import re
from typing import Any, Literal

Shape = Literal["lists", "wrapped", "columns", "rows"]

# An object with one of these keys is a row.
_OF_ROWS = {
    *("prompt", "chosen", "rejected", "completion", "messages", "conversations", "instruction", "question", "input"),
    *("preferred_output", "non_preferred_output", "response_0"),
}
_LISTS = re.compile(r'"(?:train|validation)"\s*:')
_WRAPPED = re.compile(r'"(?:data|rows)"\s*:\s*\[\s*[\[{\]]')
_COLUMNS = re.compile(r'\{\s*(?:"\d+"\s*:\s*\{|"(?:[^"\\]|\\.)*"\s*:\s*\{\s*"\d+"\s*:)')


def shape_of(value: Any) -> Shape:
    """The shape of a complete object: lists of rows, wrapped rows, columns, or a single row."""
    if not isinstance(value, dict):
        return "rows"
    parts = [value[name] for name in ("train", "validation") if name in value]
    # A row may have a column of that name that says to which part it belongs.
    if parts and not (_OF_ROWS & value.keys() and not any(isinstance(part, list) for part in parts)):
        return "lists"
    if value and all(isinstance(column, dict) and column for column in value.values()):
        by_row = all(map(str.isdecimal, value))
        if by_row or all(all(map(str.isdecimal, column)) for column in value.values()):
            return "columns"
    is_wrapped = any(_holds_rows(value.get(name)) for name in ("data", "rows"))
    return "wrapped" if is_wrapped and not _OF_ROWS & value.keys() else "rows"


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, (dict, list)) for row in value)


def shape_of_head(head: str) -> Shape:
    """The shape of an object whose end has not arrived yet."""
    if _COLUMNS.match(head):
        return "columns"
    if _LISTS.search(head, 0, 200) or re.search(_LISTS.pattern + r"\s*\[", head):
        return "lists"
    return "wrapped" if _WRAPPED.search(head) else "rows"
