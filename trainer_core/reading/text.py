"""Detects whether a text is JSONL, a JSON document or a table, from how it begins."""

import codecs
import json
import re
from contextlib import suppress
from typing import Any, NoReturn

from trainer_core.errors import DataInvalid
from trainer_core.reading import encodings, tables, unreadable
from trainer_core.reading.documents import DocumentReader
from trainer_core.reading.jsonl import JsonlReader
from trainer_core.reading.limits import CHUNK_BYTES, HEAD_BYTES
from trainer_core.reading.shapes import shape_of, shape_of_head
from trainer_core.reading.sink import Format, Part, Reader, Sink, tell_kind
from trainer_core.reading.whole_files import WholeFileReader
from trainer_core.reading_options import AS_IT_IS, ReadingOptions
from trainer_core.wording import Message, say

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHOWN_ROWS = 3
_FOREIGN = re.compile(rb"[\x80-\xff]")
# The first line of an object that continues below it.
_OPEN = re.compile(r".*[{\[,:]\s*$", re.DOTALL)


class TextReader:
    """Detects the encoding, then the kind, and passes the bytes on as UTF-8."""

    def __init__(self, sink: Sink, options: ReadingOptions) -> None:
        self._sink, self._options = sink, options
        self._buffer = b""
        self._line = 0
        self._is_page_known = False
        self._encoding: str | None = None
        self._decoder: codecs.IncrementalDecoder | None = None
        # Bytes of a code page from the first that is not ASCII, until they show whether they are UTF-8 instead.
        self._is_proved, self._unproved = True, b""
        self._reader: Reader | None = None

    def feed(self, data: bytes) -> None:
        if self._is_page_known:
            self._give(self._utf8(data))
            return
        self._buffer += data
        if len(self._buffer) >= CHUNK_BYTES:
            self._open(complete=False)

    def close(self) -> None:
        if not self._is_page_known:
            self._open(complete=True)
        self._give(self._utf8(b"", final=True), complete=True)
        if self._reader:
            self._reader.close()

    def _open(self, complete: bool) -> None:
        self._is_page_known = True
        head, self._buffer = self._buffer, b""
        try:
            found = encodings.encoding_of(head[:CHUNK_BYTES], complete, self._options.encoding)
        except encodings.UnknownEncoding as error:
            self._sink.give_up(error.reason, None)
        if isinstance(found, encodings.Unknown):
            if unreadable.is_binary(head[:CHUNK_BYTES]):
                self._sink.give_up(unreadable.not_rows("binary"), None)
            raise encodings.ask(found, head[:CHUNK_BYTES], _first_rows)
        self._encoding = found
        if found:
            self._decoder = encodings.decoder(found)
            self._is_proved = found.startswith("utf")
        self._give(self._utf8(head).removeprefix(_BYTE_ORDER_MARK))

    def _utf8(self, data: bytes, final: bool = False) -> bytes:
        if not self._decoder:
            return data
        if not self._is_proved:
            data = self._prove(data, final)
        return encodings.as_utf8(self._decoder.decode(data, final))

    def _prove(self, data: bytes, final: bool) -> bytes:
        """The bytes that can be decoded: up to the first that is not ASCII, until enough follow to judge them.

        Gives up if a text is UTF-8 but was declared as a code page, which may have a letter for every byte.
        """
        data, self._unproved = self._unproved + data, b""
        first = _FOREIGN.search(data)
        if not first:
            return data
        if not final and len(data) - first.start() < HEAD_BYTES:
            self._unproved = data[first.start() :]
            return data[: first.start()]
        if encodings.is_utf8_of_letters(data[first.start() :], final):
            self._sink.give_up(say("already_unicode", encoding="UTF-8"), None)
        self._is_proved = True
        return data

    def _give(self, data: bytes, complete: bool = False) -> None:
        if self._reader:
            self._reader.feed(data)
            return
        self._buffer += data
        head = _from_first_cell(self._buffer)
        self._line += self._buffer.count(b"\n", 0, len(self._buffer) - len(head))
        self._buffer = head
        is_long = len(head) >= CHUNK_BYTES
        if complete and not head:
            self._sink.give_up(say("empty_file"), None)
        if complete or is_long or (b"\n" in head and len(head) >= CHUNK_BYTES // 4):
            text = head[:CHUNK_BYTES].decode("utf-8", "replace")
            delimiter, length = tables.marked_delimiter(text)
            if delimiter:
                tell_kind(self._sink, tables.kind_of_table(delimiter), self._encoding)
                self._reader = tables.TableReader(self._sink, delimiter, self._line + 1, self._encoding)
            else:
                self._reader = self._choose(text, is_long)
            self._reader.feed(head[length:])
            self._buffer = b""

    def _choose(self, head: str, is_long: bool) -> Reader:
        if found := unreadable.unreadable_text(head):
            self._sink.give_up(found, None)
        end = b"\r" if "\r" in head.strip() and "\n" not in head else b"\n"
        line, mark, rest = head.partition(end.decode())
        if self._is_document(head, line, bool(rest.strip())):
            return DocumentReader(self._sink, self._encoding, self._columns)
        starts_as_json = line[:1] in {"{", "["} or (not mark and is_long)
        is_text = starts_as_json or _is_json(line)
        if not is_text and unreadable.is_binary(head.encode()):
            self._sink.give_up(unreadable.not_rows("binary"), None)
        delimiter = None if is_text else tables.delimiter_of(head)
        if delimiter:
            tell_kind(self._sink, tables.kind_of_table(delimiter), self._encoding)
            return tables.TableReader(self._sink, delimiter, self._line, self._encoding)
        if not is_text and not rest.lstrip().startswith("{"):
            shown = " ".join(line.split())[:60]
            self._sink.give_up(say("no_rows_here", begins=shown), self._line + 1)
        tell_kind(self._sink, "jsonl", self._encoding)
        return JsonlReader(self._sink, self._line, end, self._encoding)

    def _is_document(self, head: str, line: str, has_more: bool) -> bool:
        if head.startswith("["):
            return True
        if not head.startswith("{"):
            return False
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            if line == head:
                return shape_of_head(head) != "rows"
            return bool(_OPEN.match(line)) and not _is_json(line.rstrip().removesuffix(","))
        shape = shape_of(value)
        return shape == "lists" or (shape != "rows" and not has_more)

    def _columns(self) -> Reader:
        return WholeFileReader(self._sink, "json_columns", None, self._options, encoding=self._encoding)


def _from_first_cell(data: bytes) -> bytes:
    """A text without the blanks before it, but with the tab after a first cell that is empty: the name of an index."""
    head = data.lstrip()
    line = data.rfind(b"\n", 0, len(data) - len(head)) + 1
    is_cell = head[:1] not in {b"", b"{", b"["} and b"\t" in data[line : len(data) - len(head)]
    return data[line:] if is_cell else head


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _Enough(Exception):
    pass


class _FirstRows:
    """A sink that keeps the first rows, valid or not."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def format(self, name: Format, kind: str, encoding: str | None = None) -> None: ...

    def value(self, part: Part, value: Any, line: int) -> None:
        self.rows.append(value)
        if len(self.rows) == _SHOWN_ROWS:
            raise _Enough

    def fail(self, field: str, reason: Message, line: int | None) -> None: ...

    def give_up(self, reason: Message, line: int | None) -> NoReturn:
        raise _Enough


def _first_rows(head: bytes) -> list[dict[str, Any]]:
    sink = _FirstRows()
    with suppress(_Enough, DataInvalid):
        reader = TextReader(sink, AS_IT_IS)
        reader.feed(head)
        reader.close()
    return sink.rows
