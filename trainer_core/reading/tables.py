"""Reads CSV and TSV: a header, and cells separated by commas, tabs, semicolons or bars. Uses `csv`, in constant memory."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from trainer_core.reading.encodings import undecodable
from trainer_core.reading.limits import CHUNK_BYTES, MAX_COLUMNS, MAX_LINE_BYTES
from trainer_core.reading.sink import Sink
from trainer_core.reading.values import as_left_out, printable
from trainer_core.row_rules import is_text
from trainer_core.wording import Message, say

_KINDS = {",": "csv", "\t": "tsv", ";": "csv", "|": "csv"}
_EXCEL_LINE = re.compile(r"sep=(.)\r?\n")
# This limit on one cell applies to the whole process.
csv.field_size_limit(2 * MAX_LINE_BYTES)


class HeaderFault(ValueError):
    """An invalid header; `reason` says why."""

    def __init__(self, reason: Message) -> None:
        super().__init__(reason)
        self.reason = reason


def names_of(header: Sequence[object]) -> list[str]:
    """The column names in a header. A column without one is named by its position. Raises `HeaderFault`."""
    if len(header) > MAX_COLUMNS:
        raise HeaderFault(say("too_many_columns", most=MAX_COLUMNS))
    cells = ["" if cell is None else str(cell).strip().removeprefix("\ufeff") for cell in header]
    names = [name or f"column {place}" for place, name in enumerate(cells, start=1)]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise HeaderFault(say("duplicate_column", column=printable(twice)))
    return names


def delimiter_of(head: str) -> str | None:
    """The delimiter of a table: the one that splits its header into most cells; None if none does."""
    widths = {mark: _width(head, mark) for mark in _KINDS}
    best = max(widths, key=lambda mark: widths[mark])
    return best if widths[best] > 1 else None


def _width(head: str, mark: str) -> int:
    try:
        return len(next(csv.reader(io.StringIO(head.lstrip("\ufeff\r\n"), newline=""), delimiter=mark, strict=True)))
    except (csv.Error, StopIteration):
        return 0


def marked_delimiter(head: str) -> tuple[str | None, int]:
    """The delimiter in the first line that Excel writes (`sep=;`), and the length of that line."""
    found = _EXCEL_LINE.match(head)
    return (found[1], found.end()) if found and found[1] in _KINDS else (None, 0)


def kind_of_table(delimiter: str) -> str:
    return _KINDS[delimiter]


class _NeedMore(Exception):
    """A row does not end within the available lines."""


class TableReader:
    """Reads UTF-8. A row's line is the one on which it begins, as an editor counts; an empty cell is a missing value.

    Args:
        line: the number of lines before the header.
        encoding: the file's encoding, unless it is UTF-8.
    """

    def __init__(self, sink: Sink, delimiter: str, line: int = 0, encoding: str | None = None) -> None:
        self._sink, self._delimiter, self._line, self._encoding = sink, delimiter, line, encoding
        utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        # Whether some byte so far was invalid; only then is each row searched for such bytes.
        self._has_broken = False
        self._rest = ""
        # Lines that are not parsed yet, and the size at which to try again.
        self._lines: list[str] = []
        self._size = self._need = 0
        self._names: list[str] | None = None
        self._has_rows = False

    def feed(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            self._take(data[start : start + CHUNK_BYTES])

    def close(self) -> None:
        self._take(b"", complete=True)
        if self._names and not self._has_rows:
            self._sink.fail("", say("header_alone"), self._line)

    def _take(self, data: bytes, complete: bool = False) -> None:
        new = self._decoder.decode(data, final=complete)
        self._has_broken = self._has_broken or not is_text(new)
        *lines, self._rest = (self._rest + new).split("\n")
        if complete and self._rest:
            lines, self._rest = [*lines, self._rest], ""
        self._size += sum(map(len, lines))
        self._lines += [f"{line}\n" for line in lines]
        if self._size >= self._need or complete:
            self._read(complete)
        if self._size + len(self._rest) > MAX_LINE_BYTES:
            self._sink.give_up(say("row_too_long", most=MAX_LINE_BYTES), self._line + 1)

    def _read(self, complete: bool) -> None:
        taken = 0
        for count, cells in self._records(complete):
            taken += count
            line, self._line = self._line + 1, self._line + count
            if any(cells):
                self._row(cells, line)
        self._lines = self._lines[taken:]
        self._size = sum(map(len, self._lines))
        self._need = min(2 * self._size, MAX_LINE_BYTES)

    def _records(self, complete: bool) -> Iterator[tuple[int, list[str]]]:
        """The complete rows, each with its number of lines."""
        reader = csv.reader(self._supply(complete), delimiter=self._delimiter, strict=True)
        seen = 0
        while True:
            try:
                cells = next(reader)
            except (StopIteration, _NeedMore):
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    self._sink.give_up(say("open_quote"), self._line + 1)
                self._sink.give_up(say("quotes", problem=str(error)), self._line + 1)
            yield reader.line_num - seen, cells
            seen = reader.line_num

    def _supply(self, complete: bool) -> Iterable[str]:
        yield from self._lines
        if not complete:
            raise _NeedMore

    def _row(self, cells: list[str], line: int) -> None:
        if self._has_broken and not all(map(is_text, cells)):
            reason = undecodable(self._encoding).reason
            if self._names is None:
                self._sink.give_up(reason, line)
            self._has_rows = True
            self._sink.fail("", reason, line)
            return
        if self._names is None:
            try:
                self._names = names_of(cells)
            except HeaderFault as fault:
                self._sink.give_up(fault.reason, line)
            return
        self._has_rows = True
        width = len(self._names)
        # If the row begins with a number, the header may lack the name of an index, and the last cell may be empty.
        if any(cells[width:]) or (len(cells) > width and cells[0].strip().isdecimal()):
            self._sink.fail("", say("cells_and_columns", cells=len(cells), columns=width), line)
            return
        if sum(map(len, cells)) * 4 > MAX_LINE_BYTES and sum(len(cell.encode()) for cell in cells) > MAX_LINE_BYTES:
            self._sink.fail("", say("row_too_long", most=MAX_LINE_BYTES), line)
            return
        row = {name: cell for name, cell in zip(self._names, cells, strict=False) if cell}
        self._sink.value("train", as_left_out(row), line)
