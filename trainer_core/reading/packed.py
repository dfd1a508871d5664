"""Reads a file inside gzip, zstd, xz or bzip2: decompresses it as it arrives, within limits, then detects its kind."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from trainer_core.reading.limits import CHUNK_BYTES, HEAD_BYTES, MAX_EXPANSION, most_bytes_out
from trainer_core.reading.sink import Inside, Reader, Sink
from trainer_core.wording import say

_XZ_MEMORY_BYTES = 128 * 2**20
_ZSTD_WINDOW_BYTES = 128 * 2**20
# A block of four bytes can expand to 128 KiB, and the library returns all output of its input at once.
_ZSTD_STEP_BYTES = 256
_MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"\xfd7zXZ\x00": "xz", b"BZh": "bz2"}
_NAMES = {"gz": "gzip", "zst": "zstd", "xz": "xz", "bz2": "bzip2"}


class Packed(Exception):
    """A compressed file that is corrupt, or cannot be decompressed here."""


class NotInstalled(Exception):
    """The package that decompresses a file is missing; the argument is its name."""


class _Member(Protocol):
    """One compressed stream."""

    eof: bool
    unused_data: bytes

    def pieces(self, data: bytes) -> Iterator[bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self.unused_data = b""
        self.eof = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        try:
            while data and not self._member.eof:
                yield self._member.decompress(data, CHUNK_BYTES)
                data = self._member.unconsumed_tail
        except zlib.error as error:
            raise Packed(str(error)) from None
        self.eof, self.unused_data = self._member.eof, self._member.unused_data


class _Block:
    """What bz2 and lzma have in common."""

    def __init__(self, member: "bz2.BZ2Decompressor | lzma.LZMADecompressor") -> None:
        self._member = member
        self.unused_data = b""
        self.eof = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        try:
            yield self._member.decompress(data, CHUNK_BYTES)
            while not self._member.eof and not self._member.needs_input:
                yield self._member.decompress(b"", CHUNK_BYTES)
        except (lzma.LZMAError, OSError, ValueError, EOFError) as error:
            raise Packed(str(error)) from None
        self.eof, self.unused_data = self._member.eof, self._member.unused_data


class _Zstd:
    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise NotInstalled("zstandard") from None
        self._error = zstandard.ZstdError
        self._member = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        self.unused_data = b""
        self.eof = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        try:
            for start in range(0, len(data), _ZSTD_STEP_BYTES):
                yield self._member.decompress(data[start : start + _ZSTD_STEP_BYTES])
                if self._member.eof:
                    self.eof = True
                    self.unused_data = self._member.unused_data + data[start + _ZSTD_STEP_BYTES :]
                    return
        except self._error as error:
            raise Packed(str(error)) from None


_MEMBERS: dict[str, Callable[[], _Member]] = {
    "gz": _Gzip,
    "zst": _Zstd,
    "xz": lambda: _Block(lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_BYTES)),
    "bz2": lambda: _Block(bz2.BZ2Decompressor()),
}


def packing_of(head: bytes) -> str | None:
    """How bytes are compressed; None if they are not."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


class PackedReader:
    """One or more compressed streams in a row, optionally followed by zeros.

    Args:
        reader: makes the reader for the content, from its first bytes.
    """

    def __init__(self, sink: Sink, packing: str, reader: Callable[[bytes, Sink], Reader]) -> None:
        self._sink, self._packing, self._make = sink, packing, reader
        self._name = _NAMES[packing]
        self._inner = Inside(sink, packing)
        self._member: _Member | None = None
        self._is_first = True
        self._head = b""
        self._reader: Reader | None = None
        self._bytes_in = self._bytes_out = 0

    def feed(self, data: bytes) -> None:
        self._bytes_in += len(data)
        try:
            while data:
                if self._member is None:
                    # Tapes and disks pad the last block with zeros.
                    data = data if self._is_first else data.lstrip(b"\0")
                    if not data:
                        return
                    self._member, self._is_first = _MEMBERS[self._packing](), False
                for piece in self._member.pieces(data):
                    self._count(piece)
                    self._give(piece)
                data = self._member.unused_data if self._member.eof else b""
                self._member = None if self._member.eof else self._member
        except NotInstalled as error:
            self._sink.give_up(say("not_installed", package=str(error)), None)
        except Packed as error:
            self._sink.give_up(say("not_valid", kind=self._name, problem=str(error)), None)

    def close(self) -> None:
        if self._member or self._is_first:
            self._sink.fail("", say("file_cut_off"), None)
        self._start()
        assert self._reader is not None
        self._reader.close()

    def _give(self, piece: bytes) -> None:
        if self._reader:
            self._reader.feed(piece)
            return
        self._head += piece
        if len(self._head) >= HEAD_BYTES:
            self._start()

    def _start(self) -> None:
        if self._reader:
            return
        inner = packing_of(self._head)
        if inner:
            self._sink.give_up(say("packed_twice", outer=self._name, inner=_NAMES[inner]), None)
        self._reader = self._make(self._head, self._inner)
        self._reader.feed(self._head)

    def _count(self, piece: bytes) -> None:
        self._bytes_out += len(piece)
        if self._bytes_out > most_bytes_out(self._bytes_in):
            self._sink.give_up(say("expands", most=MAX_EXPANSION), None)
