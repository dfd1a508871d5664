"""Reads Parquet, Arrow, workbooks and zips from disk, in a process with limited memory.

A few kilobytes of these can expand to any size, and their metadata need not say so.
"""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from trainer_core.errors import DataUnclear, Detail, Question
from trainer_core.reading.encodings import undecodable
from trainer_core.reading.limits import (
    CHUNK_BYTES,
    HEAD_BYTES,
    MAX_EXPANSION,
    MAX_LINE_BYTES,
    MAX_WHOLE_FILE_BYTES,
    most_bytes_out,
)
from trainer_core.reading.sink import Inside, Reader, Sink, tell_kind
from trainer_core.reading.unreadable import not_rows
from trainer_core.reading.values import RowFault, as_left_out, row_of_line
from trainer_core.reading_options import ReadingOptions
from trainer_core.wording import say

_PROGRAM = Path(__file__).with_name("whole_file_rows.py")
# What the process needs to start. It gets no secrets.
_ENVIRONMENT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
_NAMES = {
    "parquet": "Parquet",
    "arrow": "Arrow",
    "arrow_stream": "Arrow",
    "zip": "zip",
    "xlsx": "XLSX",
    "xlsb": "XLSB",
    "ods": "ODS",
    "xls": "XLS",
    "json_columns": "JSON",
}
# These are read in pieces, so their size does not matter.
_STREAMED = {"parquet", "arrow", "arrow_stream"}


class WholeFileReader:
    """Reads from `path` at `close`, or from a copy on disk if the bytes are inside another file.

    Args:
        kind: a key of `_NAMES`, from the first bytes.
        inside: makes the reader for a file inside a zip, from its first bytes.
    """

    def __init__(
        self,
        sink: Sink,
        kind: str,
        path: Path | None,
        options: ReadingOptions,
        *,
        encoding: str | None = None,
        inside: Callable[[bytes, Sink], Reader] | None = None,
    ) -> None:
        self._sink, self._kind, self._path, self._options = sink, kind, path, options
        self._encoding, self._inside = encoding, inside
        self._bytes_in = 0
        self._copy = None if path else tempfile.TemporaryFile()  # noqa: SIM115
        if self._copy:
            weakref.finalize(self, self._copy.close)

    def feed(self, data: bytes) -> None:
        self._bytes_in += len(data)
        if self._bytes_in > MAX_WHOLE_FILE_BYTES and (self._copy or self._kind not in _STREAMED):
            self._sink.give_up(say("too_large", most_mib=MAX_WHOLE_FILE_BYTES // 2**20), None)
        if self._copy:
            self._copy.write(data)

    def close(self) -> None:
        source = self._copy or (self._path or Path()).open("rb")
        with source:
            source.flush()
            source.seek(0)
            self._run(source)

    @property
    def _name(self) -> str:
        return _NAMES[self._kind]

    def _run(self, source: Any) -> None:
        most = most_bytes_out(self._bytes_in)
        # The program reads standard input, because a temporary file may have no name.
        arguments = [self._kind, str(MAX_LINE_BYTES), str(most), self._options.sheet or ""]
        with subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), *arguments],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        ) as process:
            try:
                self._read(process, most)
            finally:
                process.kill()

    def _read(self, process: "subprocess.Popen[bytes]", most: int) -> None:
        assert process.stdout is not None
        first = process.stdout.readline()
        if first.endswith(b"\n"):
            self._kind = json.loads(first)["kind"]
            if self._kind == "zip":
                self._read_inside(process, most)
                return
            tell_kind(self._sink, self._kind, self._encoding)
            self._read_rows(process, most)
        self._end(process)

    def _read_rows(self, process: "subprocess.Popen[bytes]", most: int) -> None:
        assert process.stdout is not None
        bytes_out = 0
        for line in process.stdout:
            bytes_out += len(line)
            if bytes_out > most:
                self._expands()
            if not line.endswith(b"\n"):
                break  # The process was killed in the middle of a row.
            number, _, text = line.partition(b" ")
            try:
                row = as_left_out(row_of_line(text.decode()))
            except RowFault as fault:
                self._sink.fail(fault.field, fault.reason, int(number))
            else:
                self._sink.value("train", row, int(number))

    def _read_inside(self, process: "subprocess.Popen[bytes]", most: int) -> None:
        """Passes the file that the process extracts from a zip to its reader."""
        assert process.stdout is not None
        assert self._inside is not None
        sink = Inside(self._sink, "zip")
        head = process.stdout.read(HEAD_BYTES)
        if len(head) < HEAD_BYTES:
            self._end(process)
        reader = self._inside(head, sink)
        reader.feed(head)
        bytes_out = len(head)
        while data := process.stdout.read(CHUNK_BYTES):
            bytes_out += len(data)
            if bytes_out > most:
                self._expands()
            reader.feed(data)
        self._end(process)
        reader.close()

    def _expands(self) -> NoReturn:
        self._sink.give_up(say("expands", most=MAX_EXPANSION), None)

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Raises the error that the process ended with, if any."""
        assert process.stderr is not None
        told = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        code = process.wait()
        if code == 2 and told:
            self._tell(json.loads(told[-1]))
        if code == 1:
            problem = told[-1] if told else say("problem.unreadable")
            self._sink.give_up(say("not_valid", kind=self._name, problem=problem), None)
        if code:
            self._sink.give_up(say("needs_too_much", kind=self._name), None)

    def _tell(self, found: dict[str, Any]) -> NoReturn:
        """Gives up with the program's own reason, or asks its question."""
        code, params = found["code"], found["params"]
        if code == "not_utf8":
            self._sink.give_up(undecodable(self._encoding).reason, None)
        if code == "not_rows":
            self._sink.give_up(not_rows(params["kind"]), None)
        reason = say(code, **params | ({"kind": self._name} if code == "not_valid" else {}))
        if code == "sheet_unclear":
            sheets = params["sheets"]
            question = Question("sheet", tuple(sheets), sheets[0], tuple(found["rows"]))
            raise DataUnclear(reason, [Detail("sheet", reason)], question=question)
        self._sink.give_up(reason, found.get("line"))
