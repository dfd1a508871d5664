"""The interfaces between readers and the code that takes their rows."""

from typing import Any, Literal, NoReturn, Protocol

from trainer_core.wording import Message

Part = Literal["train", "validation"]
Format = Literal["jsonl", "json", "parquet"]

PLAIN_KINDS = frozenset({"jsonl", "json", "parquet", "jsonl.gz", "json.gz"})
"""Kinds that are stored unchanged if their text is UTF-8."""


class Sink(Protocol):
    """Takes what a reader finds. `line` counts from 1: lines in a text or a sheet, otherwise rows."""

    def format(self, name: Format, kind: str, encoding: str | None = None) -> None:
        """The kind of the file in full (`csv.zip`), and the encoding of a text that is not UTF-8."""
        ...

    def value(self, part: Part, value: Any, line: int) -> None:
        """A row, as an object that can be written as JSON in UTF-8."""
        ...

    def fail(self, field: str, reason: Message, line: int | None) -> None: ...

    def give_up(self, reason: Message, line: int | None) -> NoReturn:
        """Stops reading, because the rest of the file cannot be read."""
        ...


class Reader(Protocol):
    def feed(self, data: bytes) -> None: ...
    def close(self) -> None: ...


def tell_kind(sink: Sink, kind: str, encoding: str | None = None) -> None:
    """Reports the kind to a sink. Kinds that are not stored unchanged are stored as JSONL."""
    names: dict[str, Format] = {"json": "json", "parquet": "parquet"}
    sink.format("jsonl" if encoding else names.get(kind, "jsonl"), kind, encoding)


class Inside:
    """A sink for a file inside another file. It adds the outer file to the kind."""

    def __init__(self, sink: Sink, suffix: str) -> None:
        self._sink, self._suffix = sink, suffix
        self.value = sink.value
        self.fail = sink.fail
        self.give_up = sink.give_up

    def format(self, name: Format, kind: str, encoding: str | None = None) -> None:
        full = f"{kind}.{self._suffix}"
        self._sink.format(name if full in PLAIN_KINDS else "jsonl", full, encoding)
