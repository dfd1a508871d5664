"""Preference rows: reading, checking and reporting, as a stream and without torch.

Formats, told apart by their content:
- JSONL, one row a line.
- JSON: a list of rows, or an object with `train` and optionally `validation` lists of rows.

Kinds of row:
- `kto`:   prompt, completion, label (true: desirable)
- `pairs`: prompt, chosen, rejected

A prompt is text or a list of messages; an answer is text or a list of messages. Other fields are kept and ignored.
This module knows nothing of tokens, files' places, or who sends the bytes.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import ijson

from trainer_core.config import Method
from trainer_core.errors import DataInvalid, Detail

Kind = Literal["kto", "pairs"]
Part = Literal["train", "validation"]
Row = dict[str, Any]

MAX_ERRORS = 100
MAX_LINE_BYTES = 4 * 2**20
CHUNK_BYTES = 2**16
# An object that opens with a part, or whose first line holds its brace alone, is one document; else each line is a row.
_DOCUMENT_START = re.compile(rb'\{\s*($|"(train|validation)"\s*:)')
_ROLES = ("system", "user", "assistant")
_FIELDS: dict[Kind, tuple[str, ...]] = {
    "kto": ("prompt", "completion", "label"),
    "pairs": ("prompt", "chosen", "rejected"),
}


@dataclass
class RowReport:
    """What a file of rows holds. `errors` has the first `MAX_ERRORS` of `error_count`."""

    format: Literal["jsonl", "json"] | None = None
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

    `feed` the bytes in pieces of any size, then `close`. `on_row(part, row)` is called for each good row.
    """

    def __init__(self, on_row: Callable[[Part, Row], None] | None = None) -> None:
        self.report = RowReport()
        self._on_row = on_row
        self._buffer = b""
        self._line = 0
        self._document: _JsonDocument | None = None

    def feed(self, data: bytes) -> None:
        if self._document:
            self._document.feed(data)
            return
        self._buffer += data
        if self.report.format is None and not self._detect():
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._check_line(line)
        if len(self._buffer) > MAX_LINE_BYTES:
            self._fail("", f"a line is longer than {MAX_LINE_BYTES:,} bytes", self._line + 1)
            raise self.error()

    def close(self) -> RowReport:
        """The report. Raises `DataInvalid` with every collected error when there is one, or when there are no rows."""
        if self.report.format is None:
            self._detect(complete=True)
        if self._document:
            self._document.close()
        elif self._buffer.strip():
            self._check_line(self._buffer)
        if not self.report.error_count and not self.report.train_rows:
            where = "the `train` part is empty" if self.report.validation_rows else "there are no rows"
            self._fail("", where, None)
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

    def _detect(self, complete: bool = False) -> bool:
        """Decides between JSONL and one JSON document; False while more bytes are needed."""
        head = self._buffer.removeprefix(b"\xef\xbb\xbf").lstrip()
        first_line, newline, _ = head.partition(b"\n")
        is_document = head.startswith(b"[")
        if not is_document:
            if not newline and not complete and len(head) < CHUNK_BYTES:
                return False
            is_document = bool(_DOCUMENT_START.match(first_line))
        if is_document:
            self.report.format = "json"
            self._document = _JsonDocument(self._check_row, self._fail)
            self._document.feed(head)
            self._buffer = b""
        else:
            self.report.format = "jsonl"
            self._buffer = self._buffer.removeprefix(b"\xef\xbb\xbf")
        return not is_document

    def _check_line(self, line: bytes) -> None:
        self._line += 1
        if not line.strip():
            return
        if len(line) > MAX_LINE_BYTES:
            self._fail("", f"the line is longer than {MAX_LINE_BYTES:,} bytes", self._line)
            return
        value = _parse(line)
        if isinstance(value, str):
            self._fail("", value, self._line)
        else:
            self._check_row("train", value, self._line)

    def _check_row(self, part: Part, row: Any, line: int) -> None:
        problems = list(_problems(row, self.report.kind))
        if problems:
            for name, reason in problems:
                self._fail(name if part == "train" else f"{part}.{name}", reason, line)
            return
        self.report.kind = self.report.kind or _kind(row)
        self.report.train_rows += part == "train"
        self.report.validation_rows += part == "validation"
        self.report.desirable_rows += part == "train" and row.get("label") is True
        if self._on_row:
            self._on_row(part, row)

    def _fail(self, name: str, reason: str, line: int | None) -> None:
        self.report.error_count += 1
        if len(self.report.errors) < MAX_ERRORS:
            self.report.errors.append(Detail(name, reason, line))


class _JsonDocument:
    """A JSON document read in pieces: a list of rows, or lists under `train` and `validation`."""

    _PLACES: tuple[tuple[str, Part], ...] = (
        ("item", "train"),
        ("train.item", "train"),
        ("validation.item", "validation"),
    )

    def __init__(self, check_row: Callable[[Part, Any, int], None], fail: Callable[[str, str, int | None], None]) -> None:
        self._check_row, self._fail = check_row, fail
        self._readers = [_ItemReader(place, part) for place, part in self._PLACES]
        self._broken = False

    def feed(self, data: bytes) -> None:
        self._guarded(lambda reader: reader.feed(data))

    def close(self) -> None:
        self._guarded(lambda reader: reader.close())

    def _guarded(self, step: Callable[["_ItemReader"], Iterable[Any]]) -> None:
        if self._broken:
            return
        try:
            for reader in self._readers:
                for row in step(reader):
                    reader.count += 1
                    self._check_row(reader.part, row, reader.count)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            self._broken = True
            self._fail("", f"not valid JSON: {str(error).splitlines()[0]}", None)


class _ItemReader:
    """The rows at one place of a JSON document, as they become complete."""

    def __init__(self, place: str, part: Part) -> None:
        self.part: Part = part
        self.count = 0
        self._rows: Any = ijson.sendable_list()
        self._parser: Any = ijson.items_coro(self._rows, place, use_float=True)

    def feed(self, data: bytes) -> list[Any]:
        try:
            self._parser.send(data)
        except StopIteration:
            # The document is complete; only white space may follow.
            if data.strip():
                raise ijson.JSONError("there is more after the end of the document") from None
        return self._drain()

    def close(self) -> list[Any]:
        self._parser.close()
        return self._drain()

    def _drain(self) -> list[Any]:
        rows = list(self._rows)
        self._rows.clear()
        return rows


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _parse(line: bytes) -> Any:
    """The JSON value of a line, or the reason, as text, why there is none. A JSON string is no row either."""
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start + 1} of the line)"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    return "a row must be a JSON object" if isinstance(value, str) else value


def _kind(row: Row) -> Kind | None:
    if "chosen" in row or "rejected" in row:
        return "pairs"
    return "kto" if "completion" in row or "label" in row else None


def _problems(row: Any, expected: Kind | None) -> Iterator[tuple[str, str]]:
    """Every (field, reason) that is wrong with a row."""
    if not isinstance(row, dict):
        yield "", "a row must be a JSON object"
        return
    kind = _kind(row)
    if kind is None:
        yield "", "a row needs prompt, completion and label, or prompt, chosen and rejected"
        return
    if expected and kind != expected:
        yield "", f"this is a {kind} row, the rows before it are {expected} rows"
        return
    for name in _FIELDS[kind]:
        if name not in row:
            yield name, "is missing"
        elif name == "label":
            if not isinstance(row[name], bool):
                yield name, f"must be true or false, not {json.dumps(row[name], ensure_ascii=False)[:40]}"
        elif reason := _text_problem(row[name]):
            yield name, reason
    if kind == "pairs" and "chosen" in row and row.get("chosen") == row.get("rejected"):
        yield "rejected", "is the same as chosen"


def _text_problem(value: Any) -> str | None:
    if isinstance(value, str):
        return None if value.strip() else "is empty"
    if not isinstance(value, list):
        return f"must be text or a list of messages, not {type(value).__name__}"
    if not value:
        return "has no messages"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return "each message needs `role` and `content`"
        if message.get("role") not in _ROLES:
            return f"a message's role must be one of {', '.join(_ROLES)}"
    return None


def check_file(path: Path, on_row: Callable[[Part, Row], None] | None = None) -> RowReport:
    """Checks a file. Raises `DataInvalid`, also when the file is missing."""
    checker = RowChecker(on_row)
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                checker.feed(data)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataInvalid(
            f"cannot read {path.name}: {error.strerror}", [Detail("dataset_path", "cannot be read")]
        ) from error
    return checker.close()


def peek_kind(path: Path) -> Kind:
    """The kind of a file's first rows, without reading the rest. Raises `DataInvalid`."""
    checker = RowChecker()
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            checker.feed(data)
            if checker.report.error_count:
                raise checker.error()
            if checker.report.kind:
                return checker.report.kind
    return checker.close().kind or "pairs"


def require_kind(method: Method, kind: Kind | None) -> None:
    """Raises `DataInvalid` when a method cannot use rows of a kind. KTO takes pairs apart; IPO and CPO need pairs."""
    if method != "kto" and kind == "kto":
        raise DataInvalid(
            f"{method.upper()} needs preference pairs (prompt, chosen, rejected); these rows are single answers with a "
            "label, which only KTO uses",
            [Detail("dataset", "has kto rows, needs pairs")],
        )


def read_rows(path: Path, method: Method) -> dict[Part, list[Row]]:
    """All rows of a file in the shape that a method needs: KTO gets each pair as two labelled rows."""
    parts: dict[Part, list[Row]] = {"train": [], "validation": []}
    report = check_file(path, lambda part, row: parts[part].append(row))
    require_kind(method, report.kind)
    if method == "kto" and report.kind == "pairs":
        return {part: list(_unpair(rows)) for part, rows in parts.items()}
    return parts


def _unpair(pairs: list[Row]) -> Iterator[Row]:
    for row in pairs:
        for name, label in (("chosen", True), ("rejected", False)):
            yield {"prompt": row["prompt"], "completion": row[name], "label": label}
