"""Counts the errors in a file's rows. Equal errors are combined into one with its lines."""

from dataclasses import replace
from typing import Protocol

from trainer_core.errors import DataInvalid, Detail
from trainer_core.wording import say

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

    def as_exception(self) -> DataInvalid:
        """All errors as one exception. Its message is the first error."""
        first = self._report.errors[0]
        more = self._report.error_count - first.count
        message = sentence(first)
        return DataInvalid(say("detail.and_more", first=message, n=more) if more else message, list(self._report.errors))


def sentence(detail: Detail) -> str:
    """An error for people: `line 2: prompt: is missing`, `40 rows: prompt is missing (lines 2, 3, 4, …)`."""
    # Line numbers are text, because they have no separators between thousands.
    name, reason = detail.field, detail.reason
    if detail.count == 1:
        if detail.line:
            at = {"line": str(detail.line), "reason": reason}
            return say("detail.line_field", field=name, **at) if name else say("detail.line", **at)
        return say("detail.field", field=name, reason=reason) if name else reason
    what = say("detail.field_is", field=name, reason=reason) if name else reason
    lines = [str(line) for line in detail.lines[:_LINES_IN_A_MESSAGE]]
    lines += ["…"] if detail.count > len(lines) else []
    if not detail.lines:
        return say("detail.rows", n=detail.count, what=what)
    return say("detail.rows_lines", n=detail.count, what=what, lines=lines)
