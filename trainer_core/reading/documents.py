"""Reads JSON documents in chunks. The standard library parses one row at a time.

A document is a list of rows, an object with `train` and `validation` lists, a list under `data` or `rows` (as APIs and
pandas write it), or a series of objects that may span several lines each.
"""

import codecs
import json
import re
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, NoReturn, get_args

from trainer_core.reading.encodings import as_utf8, undecodable
from trainer_core.reading.limits import CHUNK_BYTES, MAX_COLUMNS, MAX_LINE_BYTES, MAX_ROW_DEPTH
from trainer_core.reading.shapes import Shape, shape_of, shape_of_head
from trainer_core.reading.sink import Part, Reader, Sink, tell_kind
from trainer_core.reading.values import PLAIN, RowFault, as_row, decode, explained, printable, unreadable_number
from trainer_core.row_rules import is_text
from trainer_core.wording import Message, say

# Lists beside wrapped rows that describe them.
_ABOUT = {"columns", "errors", "features", "index"}
_SPACE = re.compile(r"[ \t\n\r\ufeff]*")
_KINDS: dict[Shape, str] = {"lists": "json", "wrapped": "json_rows", "rows": "json_objects"}

# A step of the parser. It yields when it needs more text.
_Step = Generator[None, None, Any]


class _Broken(Exception):
    """The document is not valid JSON from this point on."""


class DocumentReader:
    """Reads UTF-8.

    Args:
        columns: makes the reader for a document that stores columns instead of rows.
    """

    def __init__(self, sink: Sink, encoding: str | None, columns: Callable[[], Reader]) -> None:
        self._sink, self._encoding, self._columns = sink, encoding, columns
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        # Whether some byte so far was invalid; only then is each value searched for such bytes.
        self._has_broken = False
        self._text, self._place = "", 0
        self._waiting: list[str] = []
        # Characters that are available, and how many the parser waits for.
        self._have = self._need = 0
        self._complete = self._is_too_long = False
        self._steps: _Step | None = self._read()
        self._rest: Reader | None = None

    def feed(self, data: bytes) -> None:
        if self._rest:
            self._rest.feed(data)
            return
        for start in range(0, len(data), CHUNK_BYTES):
            self._take(data[start : start + CHUNK_BYTES])

    def close(self) -> None:
        self._complete = True
        if not self._rest:
            self._take(b"")
        if self._rest:
            self._rest.close()

    def _take(self, data: bytes) -> None:
        if self._rest:
            self._rest.feed(data)
            return
        if not self._steps:
            return
        text = self._decoder.decode(data, self._complete)
        self._has_broken = self._has_broken or not is_text(text)
        self._waiting.append(text)
        self._have += len(text)
        if self._have < self._need and not self._complete:
            return
        self._text = self._text[self._place :] + "".join(self._waiting)
        self._waiting, self._place = [], 0
        try:
            next(self._steps)
        except StopIteration:
            self._steps = None
        except _Broken as error:
            self._steps = None
            fault = error.args[0]
            self._sink.fail(fault.field, fault.reason, None)
        self._have = len(self._text) - self._place

    # -- pieces of the grammar

    def _more(self, most: int | None = None) -> _Step:
        """Waits for more text. Doubling the amount keeps the number of retries small."""
        left = len(self._text) - self._place
        self._need = min(2 * left, most or 2 * left) if left else 1
        yield

    def _next(self) -> _Step:
        """The next character that is not white space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._place)
            assert space is not None
            self._place = space.end()
            if self._place < len(self._text) or self._complete:
                return self._text[self._place : self._place + 1]
            yield from self._more()

    def _value(self) -> _Step:
        """The value at this position. Raises `RowFault` for a value that cannot be a row, and `_Broken` for invalid JSON."""
        while True:
            fault: RowFault | None = None
            value = None
            try:
                try:
                    value, end = decode(self._text, self._place)
                except RowFault as found:
                    fault = found
                    _, end = PLAIN.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or len(error.doc) - error.pos < 64
                if self._complete or not is_cut:
                    self._stop(error)
                if len(self._text) - self._place > MAX_LINE_BYTES:
                    self._sink.give_up(say("row_too_long", most=MAX_LINE_BYTES), None)
            except RecursionError:
                _break(say("too_deep", most=MAX_ROW_DEPTH))
            except ValueError:
                _break(unreadable_number())
            else:
                if end < len(self._text) or self._complete:
                    if self._has_broken and not is_text(self._text[self._place : end]):
                        fault = undecodable(self._encoding)
                    self._is_too_long = _is_too_long(self._text, self._place, end)
                    self._place = end
                    if fault:
                        raise fault
                    return value
            yield from self._more()

    def _stop(self, error: json.JSONDecodeError) -> NoReturn:
        if not self._text[error.pos :].strip() or error.msg.startswith("Unterminated"):
            _break(say("cut_off"))
        raise _Broken(explained(error)) from None

    def _expect(self, letters: str, code: str) -> _Step:
        """One of these letters.

        Args:
            code: the code of the sentence about any other letter.
        """
        found = yield from self._next()
        if not found:
            _break(say("cut_off"))
        if found not in letters:
            _break(say("not_json", problem=say(code, found=printable(found))))
        self._place += 1
        return found

    # -- the document

    def _read(self) -> _Step:
        first = yield from self._next()
        shape: Shape = "lists"
        if first == "{":
            shape = yield from self._shape()
            if shape == "columns":
                self._rest = self._columns()
                # This chunk may end in the middle of a character.
                cut, _ = self._decoder.getstate()
                self._rest.feed(as_utf8(self._text[self._place :]) + cut)
                return
        tell_kind(self._sink, _KINDS[shape], self._encoding)
        if shape == "rows":
            yield from self._read_objects()
            return
        if first == "[":
            yield from self._read_list("train", {})
        else:
            yield from self._read_object(shape)
        if (yield from self._next()):
            _break(say("more_after_end"))

    def _shape(self) -> _Step:
        while True:
            try:
                value, _ = PLAIN.raw_decode(self._text, self._place)
            except (ValueError, RecursionError):
                head = self._text[self._place : self._place + CHUNK_BYTES]
                if self._complete or len(head) == CHUNK_BYTES:
                    return shape_of_head(head)
            else:
                return shape_of(value)
            yield from self._more(CHUNK_BYTES)

    def _read_objects(self) -> _Step:
        number = 0
        while (yield from self._next()):
            number += 1
            yield from self._read_row("train", number, {})

    def _read_object(self, shape: Shape) -> _Step:
        about: dict[str, Any] = {}
        unread: list[str] = []
        names: set[str] = set()
        where = {"data", "rows"} if shape == "wrapped" else set(get_args(Part))
        self._place += 1
        if (yield from self._next()) == "}":
            self._place += 1
            return
        while True:
            if (yield from self._next()) != '"':
                # The parser's own error says more, unless this is a value, such as NaN, that could never be a key.
                with suppress(RowFault):
                    yield from self._value()
                _break(say("not_json", problem=say("json.keys")))
            try:
                name = yield from self._value()
            except RowFault as fault:
                raise _Broken(fault) from None
            if name in names:
                self._sink.fail(printable(name), say("duplicate_key", key=printable(name)), None)
            names.add(name)
            yield from self._expect(":", "json.colon_not")
            is_list = (yield from self._next()) == "["
            if is_list and name in where:
                yield from self._read_list("validation" if name == "validation" else "train", about)
                # Only the first of two wrappers is read.
                where -= {"data", "rows"}
            else:
                value = yield from self._about()
                about[name] = value
                if name in get_args(Part) and value is not None:
                    self._sink.fail(name, say("not_a_list"), None)
                unread += [name] if is_list else []
            if (yield from self._expect(",}", "json.comma_not")) == "}":
                break
            if (yield from self._next()) == "}":
                _break(say("trailing_comma"))
        for name in unread:
            if not (shape == "wrapped" and name in _ABOUT):
                self._sink.fail(printable(name), say("unread_list", names=get_args(Part)), None)

    def _about(self) -> _Step:
        """The value of a key that holds no rows."""
        try:
            value = yield from self._value()
        except RowFault as fault:
            self._sink.fail(fault.field, fault.reason, None)
            return {}
        return value

    def _read_list(self, part: Part, about: dict[str, Any]) -> _Step:
        self._place += 1
        number = 0
        if (yield from self._next()) == "]":
            self._place += 1
            return
        while True:
            number += 1
            if (yield from self._next()) == "]":
                _break(say("trailing_comma"))
            yield from self._read_row(part, number, about)
            if (yield from self._expect(",]", "json.comma_not")) == "]":
                return

    def _read_row(self, part: Part, number: int, about: dict[str, Any]) -> _Step:
        try:
            value = yield from self._value()
            row = _unwrapped(value, about)
        except RowFault as fault:
            name = fault.field if part == "train" or not fault.field else f"{part}.{fault.field}"
            self._sink.fail(name, fault.reason, number)
            return
        if self._is_too_long:
            self._sink.fail("", say("row_too_long", most=MAX_LINE_BYTES), number)
            return
        self._sink.value(part, row, number)


def _break(reason: Message) -> NoReturn:
    raise _Broken(RowFault("", reason)) from None


def _is_too_long(text: str, start: int, end: int) -> bool:
    return (end - start) * 4 > MAX_LINE_BYTES and len(text[start:end].encode("utf-8", "replace")) > MAX_LINE_BYTES


def _unwrapped(value: Any, about: dict[str, Any]) -> dict[str, Any]:
    """The row without what an API or pandas wraps it in."""
    columns = about.get("columns")
    if isinstance(value, list) and isinstance(columns, list):
        if len(columns) > MAX_COLUMNS:
            raise RowFault("columns", say("too_many_columns", most=MAX_COLUMNS))
        if len(value) != len(columns) or not all(isinstance(name, str) for name in columns):
            raise RowFault("", say("cells_and_columns", cells=len(value), columns=len(columns)))
        if len(set(columns)) != len(columns):
            twice = next(name for place, name in enumerate(columns) if name in columns[:place])
            raise RowFault("columns", say("duplicate_column", column=printable(twice)))
        return dict(zip(columns, value, strict=True))
    row = as_row(value)
    if isinstance(row.get("row"), dict) and "row_idx" in row:
        return row["row"]
    schema = about.get("schema")
    keys = schema.get("primaryKey") if isinstance(schema, dict) else None
    if isinstance(keys, list) and "index" in keys:
        row.pop("index", None)
    return row
