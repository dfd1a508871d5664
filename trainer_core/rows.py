"""Reads, checks and reports preference rows as a stream, without torch.

Files can be of any kind that `trainer_core.reading` knows.

Kinds of row:
- `kto`:   prompt, completion, label (true: desirable), and optionally confidence
- `pairs`: prompt, chosen, rejected

A prompt is text or a list of messages; an answer is text or one assistant message. Rows in a layout that
`trainer_core.layouts` knows, or whose columns `ReadingOptions.map` names, are converted to this format. Other fields are
kept and ignored.
This module knows nothing about tokens, where files are, or who sends the bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainer_core.errors import DataInvalid, DataUnclear, Detail
from trainer_core.layouts import Reading, decide
from trainer_core.layouts.decision import OPTIONAL, PUBLISHED_NAMES, no_column
from trainer_core.layouts.forms import Misfit
from trainer_core.reading import CHUNK_BYTES, HEAD_BYTES, PLAIN_KINDS, Format, Part, Reader, reader_for
from trainer_core.reading_options import AS_IT_IS, ReadingOptions, misplaced
from trainer_core.row_errors import MAX_ERRORS, RowErrors
from trainer_core.row_rules import Kind, Problem, Row, kind_of, problems
from trainer_core.row_warnings import RowWarnings
from trainer_core.wording import Message, say

__all__ = ["MAX_ERRORS", "Kind", "OnBroken", "OnRow", "Part", "Row", "RowChecker", "RowReport", "check_file", "check_rows"]

if TYPE_CHECKING:
    from trainer_core.config import Method

# The layout is decided from this many rows, or fewer if they are long.
_FIRST_ROWS = 50
_FIRST_CHARACTERS = 2**20
_KEPT_ROWS = 10
# At most this many unread columns are reported.
_MOST_UNUSED = 100

OnRow = Callable[[Part, Row, int], None]
"""Called with the part, the row in Tafdil's format, and its line (JSONL) or number (other files), from 1."""
OnBroken = Callable[[Part, Any, int | None, list[Detail]], None]
"""Called for each row that `on_invalid="skip"` skips: the part, the row as read, its line, and what is wrong."""


@dataclass
class RowReport:
    """What a file of rows contains. `errors` has up to `MAX_ERRORS` different errors, including those of skipped rows.

    `file_kind` is the kind of file (`jsonl`, `csv`, `xlsx`, …), and `encoding` that of a text that is not UTF-8. `layout` is
    the layout of the rows, `mapping` has the column of each field, and `unused` the columns that were not read. `is_plain`
    says whether the file already has Tafdil's own format; other files are stored as `convert` writes them. `warnings` has
    what is valid and probably a mistake, combined like `errors`.
    """

    format: Format | None = None
    file_kind: str | None = None
    encoding: str | None = None
    layout: str | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    skipped_rows: int = 0
    is_plain: bool = True
    kind: Kind | None = None
    train_rows: int = 0
    validation_rows: int = 0
    desirable_rows: int = 0
    error_count: int = 0
    errors: list[Detail] = field(default_factory=list)
    warnings: list[Detail] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.train_rows + self.validation_rows


class RowChecker:
    """Checks rows while their bytes arrive, in constant memory.

    `feed` the bytes in chunks of any size, then `close`.

    Args:
        on_row: called for each valid row.
        path: where the same bytes are on disk when `close` is called. Kinds that need a file copy the bytes without it.
        options: how to read a file that can be read in several ways.
        on_broken: called for each row that is skipped.

    Attributes:
        first_values: the first rows as they were read, after the search for a layout.
    """

    def __init__(
        self,
        on_row: OnRow | None = None,
        path: Path | None = None,
        options: ReadingOptions = AS_IT_IS,
        on_broken: OnBroken | None = None,
    ) -> None:
        self.report = RowReport()
        self._on_row, self._path, self._options, self._on_broken = on_row, path, options, on_broken
        self._skips = options.on_invalid == "skip"
        self._head = b""
        self._reader: Reader | None = None
        self._errors = RowErrors(self.report)
        self._is_refused = False
        # Rows that wait until the layout is decided.
        self._first: list[tuple[Part, Any, int]] = []
        self._first_characters = 0
        self._reading: Reading | None = None
        self._unread: dict[str, None] = {}
        self._warnings = RowWarnings(self.report.warnings)
        self.first_values: list[Any] = []

    def feed(self, data: bytes) -> None:
        """Takes the next bytes. Raises `DataInvalid` if the rest cannot be read, and `DataUnclear`."""
        if self._reader is None:
            self._head += data
            if len(self._head) < HEAD_BYTES:
                return
            data = self._start()
        if self._reader:
            self._reader.feed(data)

    def close(self) -> RowReport:
        """The report. Raises `DataInvalid` with all errors if there are any, or if there are no rows."""
        rest = self._start() if self._reader is None else b""
        assert self._reader is not None
        self._reader.feed(rest)
        self._reader.close()
        self.finish()
        self._check_options()
        if not self.report.train_rows and not self._is_refused:
            if self.report.skipped_rows:
                error = self.error()
                raise replace(error, message=say("detail.no_valid_row", error=error.message))
            self.fail("", say("no_training_rows" if self.report.validation_rows else "no_rows"), None)
        if self._is_refused:
            raise self.error()
        return self.report

    def finish(self) -> None:
        """Takes the rows that waited until the layout is decided. Raises `DataUnclear` and `DataInvalid`."""
        if self._first:
            self._decide()

    def _check_options(self) -> None:
        """Fails if an option does not apply: a column that no row has, or a threshold without scores."""
        if self._options.threshold is not None and self._reading and not self._reading.claim.is_scored:
            self.fail("threshold", say("no_threshold"), None)
        for name, column in (self._options.map or {}).items():
            if name in OPTIONAL and self._reading and self.report.rows and column not in self._reading.seen:
                self.fail("map", no_column([column], self._reading.columns), None)

    def error(self) -> DataInvalid:
        """The collected errors as one exception."""
        return self._errors.as_exception()

    @property
    def is_refused(self) -> bool:
        """Whether the file has an error that skipping rows does not fix."""
        return self._is_refused

    def _start(self) -> bytes:
        """Chooses the reader and returns the bytes received so far."""
        head, self._head = self._head, b""
        self._reader = reader_for(head[:HEAD_BYTES], self, self._path, self._options)
        return head

    # -- what the reader calls

    def format(self, name: Format, kind: str, encoding: str | None = None) -> None:
        self.report.format, self.report.file_kind, self.report.encoding = name, kind, encoding
        self.report.is_plain &= kind in PLAIN_KINDS and encoding is None
        if wrong := misplaced(self._options, kind):
            self._is_refused = True
            self._errors.add(Detail(*wrong))
            raise self.error()

    def value(self, part: Part, value: Any, line: int) -> None:
        if self._reading:
            self._take(self._reading, part, value, line)
            return
        self._first.append((part, value, line))
        self._first_characters += _size(value)
        if len(self._first) >= _FIRST_ROWS or self._first_characters > _FIRST_CHARACTERS:
            self._decide()

    def fail(self, field: str, reason: Message, line: int | None) -> None:
        """Records an error in a line, or in the whole file (`line` is None)."""
        self._fail("train", None, line, [Detail(field, reason, line)])

    def give_up(self, reason: Message, line: int | None) -> NoReturn:
        self._is_refused = True
        self._errors.add(Detail("", reason, line))
        raise self.error()

    # -- rows

    def _decide(self) -> None:
        waiting, self._first = self._first, []
        self.first_values = [value for _, value, _ in waiting[:_KEPT_ROWS]]
        self._reading = decide((value for _, value, _ in waiting), self._options)
        self.report.layout = self._reading.layout
        for part, value, line in waiting:
            self._take(self._reading, part, value, line)

    def _take(self, reading: Reading, part: Part, value: Any, line: int) -> None:
        late = reading.late(value) if isinstance(value, dict) else None
        row, found = (value, [late]) if late else self._read(reading, value)
        if found:
            prefix = "" if part == "train" else f"{part}."
            details = [Detail(prefix + each.field, each.reason, line) for each in found]
            self._fail(part, value, line, details)
            return
        self._note_columns(reading, value)
        self._warnings.look(row, line, reading.mapping)
        self.report.is_plain &= row is value
        self.report.kind = self.report.kind or kind_of(row)
        self.report.train_rows += part == "train"
        self.report.validation_rows += part == "validation"
        self.report.desirable_rows += part == "train" and row.get("label") is True
        if self._on_row:
            self._on_row(part, row, line)

    def _read(self, reading: Reading, value: Any) -> tuple[Row, list[Problem]]:
        """A row in Tafdil's format and its problems. The row is `value` itself if nothing had to change."""
        is_row = isinstance(value, dict)
        if not is_row or (reading.is_own and reading.context.isdisjoint(value)):
            found = list(problems(value, self.report.kind))
            if not found or not is_row:
                return value, found
        try:
            row = reading.row(value)
        except Misfit as error:
            found = reading.named(error.problem)
            if self._skips and found.reason.code == "label_score" and reading.layout in PUBLISHED_NAMES:
                self._is_refused = True
            return value, [found]
        return row, [reading.named(each) for each in problems(row, self.report.kind)]

    def _note_columns(self, reading: Reading, value: Row) -> None:
        report = self.report
        for name in value:
            if name in reading.seen:
                continue
            if name in reading.read:
                if value[name] is not None:
                    reading.seen.add(name)
                    report.mapping |= {ours: theirs for ours, theirs in reading.mapping.items() if theirs == name}
            elif name not in self._unread and len(self._unread) < _MOST_UNUSED and name != "confidence":
                self._unread[name] = None
                report.unused.append(name)

    def _fail(self, part: Part, value: Any, line: int | None, details: list[Detail]) -> None:
        for detail in details:
            self._errors.add(detail)
        if line is None or not self._skips:
            self._is_refused = True
            return
        self.report.skipped_rows += 1
        self.report.is_plain = False
        if self._on_broken:
            self._on_broken(part, value, line, details)


def _size(value: Any) -> int:
    """Roughly the characters of a value; very deep ones count as large."""
    try:
        return len(str(value))
    except RecursionError:
        return _FIRST_CHARACTERS


def check_file(path: Path, on_row: OnRow | None = None, options: ReadingOptions = AS_IT_IS) -> RowReport:
    """Checks a file. Raises `DataInvalid`, also when the file is missing, and `DataUnclear`."""
    checker = RowChecker(on_row, path, options)
    for _ in _feed(checker, path):
        pass
    return checker.close()


def broken_rows(path: Path, options: ReadingOptions = AS_IT_IS) -> Iterator[tuple[int, str, Any]]:
    """The invalid rows of a file: line, reason, and the value, which is None if it is not JSON.

    Raises `DataInvalid` if the file as a whole cannot be read.
    """
    found: list[tuple[int, str, Any]] = []

    def take(part: Part, value: Any, line: int | None, details: list[Detail]) -> None:
        reasons = "; ".join(f"{detail.field} {detail.reason}".strip() for detail in details)
        found.append((line or 0, reasons, value))

    checker = RowChecker(None, path, options.model_copy(update={"on_invalid": "skip"}), take)
    for _ in _feed(checker, path):
        yield from found
        found.clear()
    try:
        checker.close()
    except DataUnclear:
        raise
    except DataInvalid:
        # The caller sees for itself that no row is valid.
        if checker.is_refused:
            raise
    yield from found


def peek_kind(path: Path) -> Kind:
    """The kind of a file's first rows, without reading the rest if the format allows. Raises `DataInvalid`."""
    checker = RowChecker(path=path)
    for _ in _feed(checker, path):
        if checker.is_refused:
            raise checker.error()
        if checker.report.kind:
            return checker.report.kind
    return checker.close().kind or "pairs"


class _Enough(Exception):
    """Enough rows were read."""


def peek_rows(path: Path, first: int, count: int) -> list[Row]:
    """Training rows of a file in Tafdil's format, from the number `first` (from 1), each with its line as `row`.

    If the format allows, nothing after them is read. Raises `DataInvalid`.
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
        raise DataInvalid.at("dataset_path", say("rows.cannot_read", file=path.name, problem=error.strerror)) from error


def require_kind(method: "Method", kind: Kind | None, field: str = "dataset_path") -> None:
    """Raises `DataInvalid` if a method cannot use rows of a kind. Methods on labels split pairs.

    Args:
        field: the field that names the data, for the error.
    """
    # Checking a file needs no settings, and building their models takes memory.
    from trainer_core.config import SETTINGS, SETTINGS_OF

    settings = SETTINGS_OF[method]
    if kind is not None and not settings.takes(kind):
        others = [each.title for each in SETTINGS if each.takes(kind)]
        raise DataInvalid.at(field, say("rows.needs_pairs", method=settings.title, others=others))


def read_rows(path: Path, method: "Method") -> dict[Part, list[Row]]:
    """All rows of a file in the shape that a method needs, each with its line as `row`.

    A method on labels gets each pair as two labelled rows with the same number.
    """
    parts: dict[Part, list[Row]] = {"train": [], "validation": []}
    report = check_file(path, lambda part, row, line: parts[part].append({**row, "row": line}))
    require_kind(method, report.kind)
    return {part: shaped(rows, method) for part, rows in parts.items()}


def check_rows(values: Iterable[Any], method: "Method") -> list[Row]:
    """Checks rows in memory and returns them like `read_rows`. Raises `DataInvalid` with each invalid row."""
    found: list[Row] = []
    checker = RowChecker(lambda _, row, line: found.append({**row, "row": line}))
    for line, value in enumerate(values, start=1):
        # Tables have a null where a row lacks a field.
        is_row = isinstance(value, dict)
        checker.value("train", {k: v for k, v in value.items() if v is not None} if is_row else value, line)
    checker.finish()
    if checker.is_refused:
        raise checker.error()
    require_kind(method, checker.report.kind)
    return shaped(found, method)


def shaped(rows: list[Row], method: "Method") -> list[Row]:
    """Checked rows in the shape that a method needs."""
    from trainer_core.config import SETTINGS_OF

    if SETTINGS_OF[method].rows == "pairs":
        return rows
    return [single for row in rows for single in (_unpaired(row) if "chosen" in row else (row,))]


def _unpaired(pair: Row) -> Iterator[Row]:
    for name, label in (("chosen", True), ("rejected", False)):
        kept = {field: value for field, value in pair.items() if field not in ("chosen", "rejected")}
        yield {**kept, "completion": pair[name], "label": label}


def pair_places(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """The positions of the chosen and the rejected row of each split pair, if both are among the rows.

    Both have the pair's number as their `row`; rows that were labelled in the file each have their own number.
    """
    places: dict[int, dict[bool, int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row["row"], {})[row["label"]] = place
    return [(found[True], found[False]) for found in places.values() if len(found) == 2]
