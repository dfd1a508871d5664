"""Reads JSONL, one row per line, in constant memory."""

from trainer_core.reading.encodings import undecodable
from trainer_core.reading.limits import MAX_LINE_BYTES
from trainer_core.reading.sink import Sink
from trainer_core.reading.values import RowFault, row_of_line
from trainer_core.wording import say


class JsonlReader:
    """Reads UTF-8.

    Args:
        line: the number of lines before the first row.
        end: what ends a line.
        encoding: the file's encoding, unless it is UTF-8.
    """

    def __init__(self, sink: Sink, line: int = 0, end: bytes = b"\n", encoding: str | None = None) -> None:
        self._sink, self._line, self._end, self._encoding = sink, line, end, encoding
        self._buffer = b""
        # Whether the rest of a line is dropped because the line is too long.
        self._is_dropping = False

    def feed(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(self._end)
        for line in lines:
            if self._is_dropping:
                self._is_dropping = False
                self._line += 1
            else:
                self._read_line(line)
        if self._is_dropping:
            self._buffer = b""
        elif len(self._buffer) > MAX_LINE_BYTES:
            self._too_long(self._line + 1)
            self._is_dropping, self._buffer = True, b""

    def close(self) -> None:
        if self._buffer.strip():
            self._read_line(self._buffer)

    def _too_long(self, line: int) -> None:
        self._sink.fail("", say("row_too_long", most=MAX_LINE_BYTES), line)

    def _read_line(self, line: bytes) -> None:
        self._line += 1
        if not line.strip():
            return
        if len(line) > MAX_LINE_BYTES:
            self._too_long(self._line)
            return
        try:
            row = row_of_line(line.decode())
        except UnicodeDecodeError:
            self._sink.fail("", undecodable(self._encoding).reason, self._line)
        except RowFault as fault:
            if fault.reason.code == "line_ends_lost":
                self._sink.give_up(fault.reason, self._line)
            self._sink.fail(fault.field, fault.reason, self._line)
        else:
            self._sink.value("train", row, self._line)
