"""The numbers of rows and their names in messages: the line, and the dataset if there are several.

A row's number is an integer, because it travels with the row through tensors. With several datasets it also encodes the
dataset's position, so that no two rows share a number. Torch-free.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from trainer_core.errors import DataInvalid, Detail
from trainer_core.wording import Message, say

# More lines than any file has. A smaller number is a line without a dataset.
_LINES = 2**32


def numbered(line: int, place: int) -> int:
    """The number of a row, from its line and its dataset's position (from 1)."""
    return place * _LINES + line


def place_of(number: int) -> int:
    """The position of a row's dataset, from 1; 0 if the rows come from one file or from memory."""
    return number // _LINES


@contextmanager
def naming(label: str | None) -> Generator[None]:
    """Adds a dataset's label to every `DataInvalid`. Without a label, errors stay unchanged."""
    try:
        yield
    except DataInvalid as error:
        if label is None:
            raise
        details = [_in_dataset(detail, label) for detail in error.details]
        raise replace(
            error, message=say("detail.of_dataset", dataset=label, error=error.message), details=details
        ) from error


def _in_dataset(detail: Detail, label: str) -> Detail:
    """A detail whose reason names its dataset. It keeps its code."""
    reason = say("detail.in_dataset", reason=detail.reason, dataset=label)
    return replace(detail, reason=reason, params={**detail.params, "dataset": label} if detail.code else {})


class RowNames:
    """The names of rows in messages.

    Args:
        labels: the names of the datasets, in order. Equal names get their position as a suffix.
    """

    def __init__(self, labels: Sequence[str] = ()) -> None:
        counts = Counter(labels)
        self.labels = tuple(
            label if counts[label] == 1 else f"{label} ({place})" for place, label in enumerate(labels, start=1)
        )

    def short(self, number: int) -> int | str:
        """`12`, or `formal.jsonl:12`."""
        place, line = divmod(number, _LINES)
        return f"{self.labels[place - 1]}:{line}" if place else line

    def long(self, number: int) -> Message:
        """`row 12`, or `row 12 of formal.jsonl`."""
        place, line = divmod(number, _LINES)
        if place:
            return say("place.row_of", row=str(line), dataset=self.labels[place - 1])
        return say("place.row", row=str(line))

    def line(self, number: int) -> Message:
        """`line 12`, or `line 12 of formal.jsonl`."""
        place, line = divmod(number, _LINES)
        if place:
            return say("place.line_of", line=str(line), dataset=self.labels[place - 1])
        return say("place.line", line=str(line))

    def detail(self, field: str, reason: str, number: int) -> Detail:
        """An error in a row. Its `line` is the line in the row's own file."""
        place, line = divmod(number, _LINES)
        detail = Detail(field, reason, line)
        return _in_dataset(detail, self.labels[place - 1]) if place else detail


AS_NUMBERED = RowNames()
"""The names of rows from one file or from memory."""
