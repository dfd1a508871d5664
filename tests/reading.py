"""A taker of rows that keeps all that readers tell."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from trainer_core.errors import DataInvalid, Detail
from trainer_core.reading import HEAD_BYTES, Format, Part, reader_for
from trainer_core.reading_options import ReadingOptions
from trainer_core.wording import Message


@dataclass
class Found:
    kind: str | None = None
    encoding: str | None = None
    format_name: str | None = None
    rows: list[tuple[str, int, Any]] = field(default_factory=list)
    errors: list[Detail] = field(default_factory=list)

    @property
    def values(self) -> list[Any]:
        return [row for _, _, row in self.rows]

    def format(self, name: Format, kind: str, encoding: str | None = None) -> None:
        self.format_name, self.kind, self.encoding = name, kind, encoding

    def value(self, part: Part, value: Any, line: int) -> None:
        self.rows.append((part, line, value))

    def fail(self, field: str, reason: Message, line: int | None) -> None:
        self.errors.append(Detail(field, reason, line))

    def give_up(self, reason: Message, line: int | None) -> NoReturn:
        self.fail("", reason, line)
        raise DataInvalid(reason)


def read(data: bytes, piece: int = 2**20, path: Path | None = None, **options: Any) -> Found:
    """Reads bytes in pieces. Raises what only an answer can mend; other errors are in `errors`."""
    found = Found()
    try:
        reader = reader_for(data[:HEAD_BYTES], found, path, ReadingOptions(**options))
        for start in range(0, len(data), piece):
            reader.feed(data[start : start + piece])
        reader.close()
    except DataInvalid:
        if not found.errors:
            raise
    return found


def reason(data: bytes, **options: Any) -> Detail:
    """The first thing that is wrong."""
    return read(data, **options).errors[0]
