"""Counts the errors in a file's rows. Equal errors are combined into one with its lines."""

from dataclasses import replace
from typing import Protocol

from trainer_core.errors import DataInvalid, Detail

MAX_ERRORS = 100
_SHOWN_LINES = 10
_LINES_IN_A_MESSAGE = 3


class Report(Protocol):
    """Stores errors: `errors` has the first `MAX_ERRORS` different ones, and `error_count` counts those of all rows."""

    error_count: int
    errors: list[Detail]


class RowErrors:
    """Collects errors in a report, in constant memory."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._places: dict[tuple[str, str], int] = {}

    def add(self, detail: Detail) -> None:
        """Adds the next error of a row or of the whole file."""
        report = self._report
        report.error_count += 1
        key = detail.field, detail.reason
        place = self._places.get(key)
        if place is None:
            if len(report.errors) < MAX_ERRORS:
                self._places[key] = len(report.errors)
                report.errors.append(detail)
            return
        known = report.errors[place]
        lines = known.lines or ((known.line,) if known.line is not None else ())
        if detail.line is not None and len(lines) < _SHOWN_LINES:
            lines = (*lines, detail.line)
        report.errors[place] = replace(known, count=known.count + 1, lines=lines)

    def as_exception(self, before: str = "") -> DataInvalid:
        """All errors as one exception. Its message is the first error.

        Args:
            before: the beginning of the message.
        """
        first = self._report.errors[0]
        more = self._report.error_count - first.count
        rest = f" (and {more:,} more {'error' if more == 1 else 'errors'})" if more else ""
        return DataInvalid(before + sentence(first) + rest, list(self._report.errors))


def sentence(detail: Detail) -> str:
    """An error for people: `line 2: prompt: is missing`, `40 rows: prompt is missing (lines 2, 3, 4, …)`."""
    if detail.count == 1:
        place = f"line {detail.line}: " if detail.line else ""
        return f"{place}{detail.field}{': ' if detail.field else ''}{detail.reason}"
    what = f"{detail.field} {detail.reason}".strip()
    shown = detail.lines[:_LINES_IN_A_MESSAGE]
    more = ", …" if detail.count > len(shown) else ""
    lines = f" (lines {', '.join(map(str, shown))}{more})" if shown else ""
    return f"{detail.count:,} rows: {what}{lines}"
