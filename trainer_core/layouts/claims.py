"""What a layout sees of a file (its first rows) and what it returns: how columns become fields."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from trainer_core.errors import DataUnclear, Detail, Question
from trainer_core.layouts.forms import CONTEXT
from trainer_core.layouts.words import field_of
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row
from trainer_core.wording import Message, say

SHOWN_ROWS = 3
_NAMED_COLUMNS = 40
_SHOWN_CHARACTERS = 1000
_SHOWN_DEPTH = 8


class Sample:
    """The first rows of a file, without nulls.

    Attributes:
        columns: the column names of all rows, in order of appearance.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(name for row in self.rows for name in row))

    def has(self, *columns: str) -> bool:
        return all(column in self.columns for column in columns)

    def has_any(self, *columns: str) -> bool:
        return any(column in self.columns for column in columns)

    def values(self, *columns: str) -> list[Any]:
        return [row[column] for row in self.rows for column in columns if column in row]

    def every(self, column: str, test: Callable[[Any], bool]) -> bool:
        """Whether the column has values and all of them pass."""
        values = self.values(column)
        return bool(values) and all(map(test, values))

    @property
    def has_whole(self) -> bool:
        """Whether answers are whole conversations."""
        return any(is_whole(value) for value in self.values("chosen", "rejected", "completion"))


def is_whole(value: Any) -> bool:
    """Whether an answer has more than one turn."""
    if not isinstance(value, list) or len(value) < 2:
        return False
    return all(isinstance(each, dict) and ("role" in each or "from" in each) for each in value)


@dataclass(frozen=True)
class Claim:
    """How a layout reads a row.

    Attributes:
        mapping: Tafdil's fields, each with the column that it comes from.
        fields: turns a row into fields, in any form that `forms.finish` accepts. Raises `Misfit`.
        used: columns that are read but not in the mapping.
        is_scored: the labels are scores, which `ReadingOptions.threshold` divides.
    """

    mapping: dict[str, str]
    fields: Callable[[Row], Row]
    used: frozenset[str] = frozenset()
    is_scored: bool = False


@dataclass(frozen=True)
class Layout:
    """A published way to write preference rows.

    Attributes:
        claims: how to read a file that begins with the sample; None if it has another layout. Raises `DataUnclear` if the
            file has this layout and needs an option.
    """

    name: str
    claims: Callable[[Sample, ReadingOptions], Claim | None]


def with_context(mapping: dict[str, str], sample: Sample) -> dict[str, str]:
    """A mapping, extended with the columns that change the model's input: `system`, `history` and `tools`.

    Raises `DataUnclear` if several columns could hold the system text.
    """
    taken = set(mapping.values())
    found = {name: name for name in CONTEXT if name not in mapping and name not in taken}
    if "system" in found:
        columns = [name for name in sample.columns if name not in taken and field_of(name) == "system"]
        if len(columns) > 1:
            guess = {"system": columns[0]}
            raise unclear("map", "system_unclear", sample.columns, guess, sample.rows, names=columns)
        found |= {"system": columns[0]} if columns else {}
    return mapping | found


def renaming(mapping: dict[str, str]) -> Callable[[Row], Row]:
    """A function that renames a row's columns to Tafdil's fields."""
    return lambda row: {ours: row[theirs] for ours, theirs in mapping.items() if theirs in row}


def renamed(sample: Sample, **mapping: str) -> Claim:
    """The claim of a layout that differs only in its column names."""
    whole = with_context(mapping, sample)
    return Claim(whole, renaming(whole))


def unclear(
    about: Any,
    code: str,
    choices: Iterable[str],
    guess: Any = None,
    rows: Iterable[Row] = (),
    **params: Any,
) -> DataUnclear:
    """The error that asks for an option of `ReadingOptions`.

    Args:
        code: the code of its sentence.
        params: the values of its sentence, besides the choices.
    """
    named = named_columns(choices)
    question = Question(about, tuple(named), showable(guess), tuple(showable(row) for row in tuple(rows)[:SHOWN_ROWS]))
    reason = say(code, choices=named, **{name: showable(value) for name, value in params.items()})
    return DataUnclear(reason, [Detail(about, reason)], question=question)


def showable(value: Any, depth: int = 0) -> Any:
    """A value as a question shows it: shortened, and valid in JSON."""
    if depth > _SHOWN_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {_text(str(name)): showable(each, depth + 1) for name, each in list(value.items())[:_NAMED_COLUMNS]}
    if isinstance(value, list):
        return [showable(each, depth + 1) for each in value[:_NAMED_COLUMNS]]
    if isinstance(value, Message):
        return value
    if isinstance(value, str):
        return _text(value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "…")
    return value if isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)) else None


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def named_columns(columns: Iterable[str]) -> list[str]:
    """The first column names, for a message."""
    return [_text(name) for name in list(columns)[:_NAMED_COLUMNS]]
