"""Finds rows that are valid but probably a mistake. Torch-free."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer_core.errors import Detail
from trainer_core.row_rules import Row
from trainer_core.wording import say

# What programs write into a text cell that has no value.
_NULLS = frozenset({"null", "none", "nil", "nan", "n/a", "#n/a", "<na>", "undefined"})
_LONGEST = max(map(len, _NULLS))
_PAIR, _LABELLED = ("prompt", "chosen", "rejected"), ("prompt", "completion")
_MOST_LINES = 10
_MOST_WARNINGS = 100


class RowWarnings:
    """Collects warnings in constant memory; equal ones are merged and counted."""

    def __init__(self, found: list[Detail]) -> None:
        self._found = found
        self._places: dict[tuple[str, str], int] = {}

    def look(self, row: Row, line: int, mapping: Mapping[str, str]) -> None:
        """Looks at a valid row.

        Args:
            mapping: the file's column for each field.
        """
        for name in _PAIR if "chosen" in row else _LABELLED:
            text: Any = row[name]
            # Most texts, and lists of messages, are longer than this.
            if len(text) > _LONGEST + 2:
                continue
            if isinstance(text, list):
                text = text[0].get("content") if len(text) == 1 else None
            if isinstance(text, str) and (word := text.strip()).casefold() in _NULLS:
                self._add(mapping.get(name, name), word, line)

    def _add(self, field: str, word: str, line: int) -> None:
        place = self._places.get((field, word))
        if place is None:
            if len(self._found) < _MOST_WARNINGS:
                self._places[field, word] = len(self._found)
                self._found.append(Detail(field, say("null_text", value=word), line))
            return
        known: Any = self._found[place]
        lines = known.lines or (known.line,)
        lines = (*lines, line) if len(lines) < _MOST_LINES else lines
        self._found[place] = replace(known, count=known.count + 1, lines=lines)
