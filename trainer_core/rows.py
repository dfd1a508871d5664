"""Preference rows: reading, checking and reporting, as a stream and without torch.

Files, told apart by their content: JSONL with one row a line; JSON, a list of rows or an object with `train` and optionally
`validation` lists; either of them gzipped; Parquet with a column a field.

Kinds of row:
- `kto`:   prompt, completion, label (true: desirable), and optionally confidence
- `pairs`: prompt, chosen, rejected; also in the hosted vendors' shape: input, preferred_output, non_preferred_output

A prompt is text or a list of messages; an answer is text or one assistant's message. Other fields are kept and ignored.
This module knows nothing of tokens, files' places, or who sends the bytes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from trainer_core.config import Method
from trainer_core.errors import DataInvalid, Detail
from trainer_core.row_bytes import CHUNK_BYTES, MAGIC_BYTES, Format, Part, Reader, reader_for
from trainer_core.row_rules import Kind, Row, kind_of, normal_form, problems

MAX_ERRORS = 100

OnRow = Callable[[Part, Row, int], None]
"""Called with the part, the row in its normal form, and its line (JSONL) or number (else), from 1."""


@dataclass
class RowReport:
    """What a file of rows holds. `errors` has the first `MAX_ERRORS` of `error_count`."""

    format: Format | None = None
    kind: Kind | None = None
    train_rows: int = 0
    validation_rows: int = 0
    desirable_rows: int = 0
    error_count: int = 0
    errors: list[Detail] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.train_rows + self.validation_rows


class RowChecker:
    """Checks rows while their bytes arrive, in memory that does not grow with the file.

    `feed` the bytes in pieces of any size, then `close`.

    Args:
        on_row: called for each good row.
        path: where the same bytes lie on disk when `close` is called; Parquet needs it.
    """

    def __init__(self, on_row: OnRow | None = None, path: Path | None = None) -> None:
        self.report = RowReport()
        self._on_row, self._path = on_row, path
        self._head = b""
        self._reader: Reader | None = None

    def feed(self, data: bytes) -> None:
        """Takes the next bytes. Raises `DataInvalid` when nothing after them can be read."""
        if self._reader is None:
            self._head += data
            if len(self._head) < MAGIC_BYTES:
                return
            data = self._start()
        if self._reader:
            self._reader.feed(data)

    def close(self) -> RowReport:
        """The report. Raises `DataInvalid` with every collected error when there is one, or when there are no rows."""
        rest = self._start() if self._reader is None else b""
        assert self._reader is not None
        self._reader.feed(rest)
        self._reader.close()
        if not self.report.error_count and not self.report.train_rows:
            where = "the `train` part is empty" if self.report.validation_rows else "there are no rows"
            self.fail("", where, None)
        if self.report.error_count:
            raise self.error()
        return self.report

    def error(self) -> DataInvalid:
        """The collected errors as one exception."""
        first = self.report.errors[0]
        place = f"line {first.line}: " if first.line else ""
        name = f"{first.field}: " if first.field else ""
        more = f" (and {self.report.error_count - 1} more)" if self.report.error_count > 1 else ""
        return DataInvalid(f"{place}{name}{first.reason}{more}", list(self.report.errors))

    def _start(self) -> bytes:
        """Chooses the reader and returns what arrived so far."""
        head, self._head = self._head, b""
        self._reader = reader_for(head[:MAGIC_BYTES], self, self._path)
        return head

    # -- what the reader calls

    def format(self, name: Format) -> None:
        self.report.format = name

    def value(self, part: Part, value: Any, line: int) -> None:
        found = list(problems(value, self.report.kind))
        for name, reason in found:
            self.fail(name if part == "train" else f"{part}.{name}", reason, line)
        if found:
            return
        row = normal_form(value)
        self.report.kind = self.report.kind or kind_of(row)
        self.report.train_rows += part == "train"
        self.report.validation_rows += part == "validation"
        self.report.desirable_rows += part == "train" and row.get("label") is True
        if self._on_row:
            self._on_row(part, row, line)

    def fail(self, field: str, reason: str, line: int | None) -> None:
        self.report.error_count += 1
        if len(self.report.errors) < MAX_ERRORS:
            self.report.errors.append(Detail(field, reason, line))

    def give_up(self, reason: str, line: int | None) -> NoReturn:
        self.fail("", reason, line)
        raise self.error()


def check_file(path: Path, on_row: OnRow | None = None) -> RowReport:
    """Checks a file. Raises `DataInvalid`, also when the file is missing."""
    checker = RowChecker(on_row, path)
    for _ in _feed(checker, path):
        pass
    return checker.close()


def peek_kind(path: Path) -> Kind:
    """The kind of a file's first rows, without reading the rest where the format allows. Raises `DataInvalid`."""
    checker = RowChecker(path=path)
    for _ in _feed(checker, path):
        if checker.report.error_count:
            raise checker.error()
        if checker.report.kind:
            return checker.report.kind
    return checker.close().kind or "pairs"


class _Enough(Exception):
    """As many rows as were wanted were read."""


def peek_rows(path: Path, first: int, count: int) -> list[Row]:
    """Training rows of a file in their normal form, from the number `first` (from 1), each with its line as `row`.

    What follows them is not read, where the format allows. Raises `DataInvalid`.
    """
    found: list[Row] = []
    seen = 0

    def take(part: Part, row: Row, line: int) -> None:
        nonlocal seen
        if part == "train":
            seen += 1
            if seen >= first:
                found.append({**row, "row": line})
            if len(found) == count:
                raise _Enough

    with suppress(_Enough):
        check_file(path, take)
    return found


def _feed(checker: RowChecker, path: Path) -> Iterator[None]:
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                checker.feed(data)
                yield
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataInvalid(
            f"cannot read {path.name}: {error.strerror}", [Detail("dataset_path", "cannot be read")]
        ) from error


def require_kind(method: Method, kind: Kind | None) -> None:
    """Raises `DataInvalid` when a method cannot use rows of a kind. KTO takes pairs apart; IPO and CPO need pairs."""
    if method != "kto" and kind == "kto":
        raise DataInvalid(
            f"{method.upper()} needs preference pairs (prompt, chosen, rejected); these rows are single answers with a "
            "label, which only KTO uses",
            [Detail("dataset", "has kto rows, needs pairs")],
        )


def read_rows(path: Path, method: Method) -> dict[Part, list[Row]]:
    """All rows of a file in the shape that a method needs, each with its line as `row`.

    KTO gets each pair as two labelled rows.
    """
    parts: dict[Part, list[Row]] = {"train": [], "validation": []}
    report = check_file(path, lambda part, row, line: parts[part].append({**row, "row": line}))
    require_kind(method, report.kind)
    return {part: shaped(rows, method) for part, rows in parts.items()}


def check_rows(values: Iterable[Any], method: Method) -> list[Row]:
    """Rows that are in memory already, as `read_rows` gives those of a file. Raises `DataInvalid`, naming each bad row."""
    found: list[Row] = []
    checker = RowChecker(lambda _, row, line: found.append({**row, "row": line}))
    for line, value in enumerate(values, start=1):
        # Tables have a null where a row lacks a field.
        is_row = isinstance(value, dict)
        checker.value("train", {k: v for k, v in value.items() if v is not None} if is_row else value, line)
    if checker.report.error_count:
        raise checker.error()
    require_kind(method, checker.report.kind)
    return shaped(found, method)


def shaped(rows: list[Row], method: Method) -> list[Row]:
    """Checked rows in the shape that a method needs."""
    if method != "kto":
        return rows
    return [single for row in rows for single in (_unpaired(row) if "chosen" in row else (row,))]


def _unpaired(pair: Row) -> Iterator[Row]:
    for name, label in (("chosen", True), ("rejected", False)):
        kept = {field: value for field, value in pair.items() if field not in ("chosen", "rejected")}
        yield {**kept, "completion": pair[name], "label": label}
