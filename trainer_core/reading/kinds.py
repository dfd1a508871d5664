"""Detects the kind of a file from its first bytes and chooses its reader."""

from functools import partial
from pathlib import Path

from trainer_core.reading.packed import PackedReader, packing_of
from trainer_core.reading.sink import Reader, Sink
from trainer_core.reading.text import TextReader
from trainer_core.reading.unreadable import unreadable_binary
from trainer_core.reading.whole_files import WholeFileReader
from trainer_core.reading_options import AS_IT_IS, ReadingOptions
from trainer_core.wording import say

_WHOLE = {
    b"PAR1": "parquet",
    b"ARROW1\0\0": "arrow",
    b"\xff\xff\xff\xff": "arrow_stream",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "xls",
}


def reader_for(head: bytes, sink: Sink, path: Path | None, options: ReadingOptions = AS_IT_IS) -> Reader:
    """The reader for a file that begins with `head` (`HEAD_BYTES` of it, unless the file is shorter).

    Args:
        path: where the whole file is when the reader is closed. Without it, kinds that need a file are copied to disk.

    The reader raises `DataUnclear` if `options` must say more, and whatever the sink raises.
    """
    return _reader(head, sink, path, options, depth=0)


def _reader(head: bytes, sink: Sink, path: Path | None, options: ReadingOptions, depth: int) -> Reader:
    if found := unreadable_binary(head):
        sink.give_up(found, None)
    inside = partial(_inside, options=options, depth=depth + 1)
    packing = packing_of(head)
    if depth > 1 and (packing or _whole(head) == "zip"):
        sink.give_up(say("packed_too_often"), None)
    if packing:
        return PackedReader(sink, packing, inside)
    whole = _whole(head)
    if whole:
        return WholeFileReader(sink, whole, path, options, inside=inside)
    return TextReader(sink, options)


def _inside(head: bytes, sink: Sink, options: ReadingOptions, depth: int) -> Reader:
    return _reader(head, sink, None, options, depth)


def _whole(head: bytes) -> str | None:
    return next((kind for magic, kind in _WHOLE.items() if head.startswith(magic)), None)
