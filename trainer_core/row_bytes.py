"""From a file's bytes to the values of its rows: JSONL, JSON, either of them gzipped, and Parquet.

A reader takes bytes in pieces of any size and gives each value to a `Sink`, in memory that does not grow with the file.
It knows nothing of what a row must be.
"""

import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, get_args

import ijson

Part = Literal["train", "validation"]
Format = Literal["jsonl", "json", "parquet"]

MAX_LINE_BYTES = 4 * 2**20
CHUNK_BYTES = 2**16
# Text that expands more than this was made to fill a disk or a memory; small files may, whatever they hold.
_MAX_EXPANSION = 200
_ALWAYS_ALLOWED_BYTES = 64 * 2**20
_PARQUET_PROGRAM = Path(__file__).with_name("parquet_rows.py")
# What the process that reads Parquet needs to start; it gets no secret.
_PARQUET_ENVIRONMENT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
# An object that opens with a part, or whose first line holds its brace alone, is one document; else each line is a row.
_DOCUMENT_START = re.compile(rb'\{\s*($|"(train|validation)"\s*:)')
_MAX_DEPTH = 200
_MAX_NAME = 80
# A string that ends in this piece, or its beginning; then what is left of one that began before.
_BRACKETS_AND_STRINGS = re.compile(rb'[\[\]{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:(")|\\?\Z)', re.DOTALL)
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+(?:(")|\\?\Z)', re.DOTALL)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAGIC_BYTES = 4


class Sink(Protocol):
    """Takes what a reader finds. `line` counts from 1: lines of JSONL, else rows."""

    def format(self, name: Format) -> None: ...
    def value(self, part: Part, value: Any, line: int) -> None: ...
    def fail(self, field: str, reason: str, line: int | None) -> None: ...
    def give_up(self, reason: str, line: int | None) -> NoReturn:
        """Ends the reading: what follows cannot be read."""
        ...


class Reader(Protocol):
    def feed(self, data: bytes) -> None: ...
    def close(self) -> None: ...


def reader_for(head: bytes, sink: Sink, path: Path | None) -> Reader:
    """The reader for a file that begins with `head` (`MAGIC_BYTES` of it, unless the file is shorter)."""
    if head.startswith(b"\x1f\x8b"):
        return _GzipReader(sink)
    return _ParquetReader(sink, path) if head == b"PAR1" else _TextReader(sink)


class _TextReader:
    """JSONL or one JSON document, told apart by how it begins."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = b""
        self._line = 0
        self._is_decided = False
        self._document: _JsonDocument | None = None

    def feed(self, data: bytes) -> None:
        if self._document:
            self._document.feed(data)
            return
        self._buffer += data
        if not self._is_decided and not self._decide():
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._read_line(line)
        if len(self._buffer) > MAX_LINE_BYTES:
            self._sink.give_up(f"a line is longer than {MAX_LINE_BYTES:,} bytes", self._line + 1)

    def close(self) -> None:
        if not self._is_decided:
            self._decide(complete=True)
        if self._document:
            self._document.close()
        elif self._buffer.strip():
            self._read_line(self._buffer)

    def _decide(self, complete: bool = False) -> bool:
        """Decides between JSONL and one JSON document; False while more bytes are needed."""
        found = self._buffer.removeprefix(_BYTE_ORDER_MARK)
        head = found.lstrip()
        self._line += found.count(b"\n", 0, len(found) - len(head))
        self._buffer = head
        first_line, newline, _ = head.partition(b"\n")
        is_document = head.startswith(b"[")
        if not is_document:
            if not newline and not complete and len(head) < CHUNK_BYTES:
                return False
            is_document = bool(_DOCUMENT_START.match(first_line))
        self._is_decided = True
        self._sink.format("json" if is_document else "jsonl")
        if is_document:
            self._document = _JsonDocument(self._sink)
            self._document.feed(head)
            self._buffer = b""
        return not is_document

    def _read_line(self, line: bytes) -> None:
        self._line += 1
        if not line.strip():
            return
        if len(line) > MAX_LINE_BYTES:
            self._sink.fail("", f"the line is longer than {MAX_LINE_BYTES:,} bytes", self._line)
            return
        value = _parse(line)
        if isinstance(value, str):
            self._sink.fail("", value, self._line)
        else:
            self._sink.value("train", value, self._line)


class _JsonDocument:
    """A JSON document read in pieces: a list of rows, or lists under `train` and `validation`."""

    _PLACES: tuple[tuple[str, Part], ...] = (
        ("item", "train"),
        ("train.item", "train"),
        ("validation.item", "validation"),
    )

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._readers = [_ItemReader(place, part) for place, part in self._PLACES]
        self._nesting = _Nesting(sink)
        self._broken = False
        self._unfinished_bytes = 0

    def feed(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            self._feed_piece(data[start : start + CHUNK_BYTES])

    def _feed_piece(self, piece: bytes) -> None:
        def feed(reader: _ItemReader) -> list[Any]:
            if reader is self._readers[0]:
                self._nesting.feed(piece)
            return reader.feed(piece)

        before = self._row_count
        self._guarded(feed)
        # The parser holds all of a row, and of any other value, until it ends.
        self._unfinished_bytes = self._unfinished_bytes + len(piece) if self._row_count == before else 0
        if self._unfinished_bytes > MAX_LINE_BYTES and not self._broken:
            self._sink.give_up(f"no row ends within {MAX_LINE_BYTES:,} bytes", None)

    @property
    def _row_count(self) -> int:
        return sum(reader.count for reader in self._readers)

    def close(self) -> None:
        self._guarded(lambda reader: reader.close())

    def _guarded(self, step: Callable[["_ItemReader"], Iterable[Any]]) -> None:
        if self._broken:
            return
        try:
            for reader in self._readers:
                for value in step(reader):
                    reader.count += 1
                    self._sink.value(reader.part, value, reader.count)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            self._broken = True
            self._sink.fail("", f"not valid JSON: {str(error).splitlines()[0]}", None)


class _Nesting:
    """What the parser is not asked: how deep a document is, and what it has where no reader looks for rows.

    No document may be deep: the parser's time grows with the square of the depth.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._is_object = False
        # The last string at the top of an object: the name of the list or object that opens next.
        self._name = b""

    def feed(self, data: bytes) -> None:
        """Raises `ijson.JSONError` when the document so far is too deep."""
        if self._is_escaped:
            self._name_goes_on(data[:1])
            data = data[1:]
            self._is_escaped = False
        if self._in_string:
            rest = _STRING_REST.match(data)
            assert rest is not None
            if self._depth == 1:
                self._name_goes_on(rest[0])
            data = data[rest.end() :]
            self._in_string = not rest[1]
            self._is_escaped = self._in_string and _ends_escaped(rest[0])
        for token in _BRACKETS_AND_STRINGS.finditer(data):
            text = token[0]
            if text[:1] == b'"':
                self._in_string = not token[1]
                self._is_escaped = self._in_string and _ends_escaped(text)
                if self._depth == 1:
                    self._name = text
            elif text in b"[{":
                if self._depth == 0:
                    self._is_object = text == b"{"
                elif self._depth == 1 and self._is_object:
                    self._check_part(is_list=text == b"[")
                self._depth += 1
                if self._depth > _MAX_DEPTH:
                    raise ijson.JSONError(f"nested deeper than {_MAX_DEPTH} levels")
            else:
                self._depth -= 1

    def _name_goes_on(self, more: bytes) -> None:
        """Copies are bounded, however long a string is and in however small pieces it arrives."""
        if len(self._name) < CHUNK_BYTES:
            self._name += more

    def _check_part(self, is_list: bool) -> None:
        """Rows under a name that is not read would be lost without a word."""
        try:
            name = str(json.loads(self._name)).encode("utf-8", "backslashreplace").decode()[:_MAX_NAME]
        except ValueError:
            return  # No JSON, of which the parser tells; or longer than anybody's name.
        if name in get_args(Part) and not is_list:
            self._sink.fail(name, "must be a list of rows", None)
        elif name not in get_args(Part) and is_list:
            self._sink.fail(name, "no rows are read from a list of this name; call it `train` or `validation`", None)


def _ends_escaped(text: bytes) -> bool:
    """Whether the piece of a string ends with a backslash that escapes what comes next."""
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1


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


class _GzipReader:
    """Gzipped text, in one member or several."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._text = _TextReader(sink)
        self._member = zlib.decompressobj(wbits=31)
        self._bytes_in = self._bytes_out = 0

    def feed(self, data: bytes) -> None:
        self._bytes_in += len(data)
        try:
            while data:
                if self._member.eof:
                    self._member = zlib.decompressobj(wbits=31)
                piece = self._member.decompress(data, CHUNK_BYTES)
                self._count(piece)
                self._text.feed(piece)
                data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        except zlib.error as error:
            self._sink.give_up(f"not valid gzip: {error}", None)

    def close(self) -> None:
        if not self._member.eof:
            self._sink.fail("", "the gzipped file is cut off", None)
        self._text.close()

    def _count(self, piece: bytes) -> None:
        self._bytes_out += len(piece)
        if self._bytes_out > max(_ALWAYS_ALLOWED_BYTES, self._bytes_in * _MAX_EXPANSION):
            self._sink.give_up(f"the gzipped file expands more than {_MAX_EXPANSION} times", None)


class _ParquetReader:
    """Parquet, whose index is at its end: read from the file when all of it has arrived, by a process with little memory.

    A few kilobytes of Parquet may expand to any size, and do not have to say so.
    """

    def __init__(self, sink: Sink, path: Path | None) -> None:
        self._sink, self._path = sink, path
        self._bytes_in = MAGIC_BYTES

    def feed(self, data: bytes) -> None:
        self._bytes_in += len(data)

    def close(self) -> None:
        assert self._path is not None, "Parquet is read from a file"
        self._sink.format("parquet")
        most = max(_ALWAYS_ALLOWED_BYTES, self._bytes_in * _MAX_EXPANSION)
        arguments = [str(self._path.resolve()), str(MAX_LINE_BYTES), str(most)]
        with subprocess.Popen(
            [sys.executable, "-P", str(_PARQUET_PROGRAM), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in _PARQUET_ENVIRONMENT if name in os.environ},
        ) as process:
            try:
                self._read_lines(process, most)
            finally:
                process.kill()

    def _read_lines(self, process: "subprocess.Popen[bytes]", most: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        bytes_out = 0
        for number, line in enumerate(process.stdout, start=1):
            bytes_out += len(line)
            if bytes_out > most:
                self._sink.give_up(f"the Parquet file expands more than {_MAX_EXPANSION} times", None)
            if not line.endswith(b"\n"):
                break  # The process was ended in the middle of a row.
            self._sink.value("train", json.loads(line), number)
        told = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        if process.wait() == 1:
            self._sink.give_up(f"not valid Parquet: {told[-1] if told else 'it cannot be read'}", None)
        if process.returncode:
            self._sink.give_up("not valid Parquet: it needs more memory or time than a file of rows may", None)


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
