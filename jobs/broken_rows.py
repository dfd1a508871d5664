"""The rows that an upload skipped, as a table to correct in a spreadsheet and upload again."""

import csv
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from jobs.errors import TooLarge
from trainer_core.errors import Detail
from trainer_core.wording import say

# Spreadsheets run a cell that begins with one of these as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
# More columns than anyone reads in a sheet; further keys are dropped.
_MAX_COLUMNS = 200
_OWN_COLUMNS = ("line", "problem")
# Preserves unpaired surrogates, which UTF-8 cannot encode. ASCII escapes would triple the size of Arabic.
_SURROGATES = "surrogatepass"


class BrokenRows:
    """Collects rows, in memory that grows only with the number of columns.

    Args:
        spool: a temporary file, removed by `write_table` or `drop`.
        most_bytes: the maximum size of the temporary file. A compressed upload holds far more than its own size.
        on_bytes: called with the number of bytes before they are written to it.
    """

    def __init__(self, spool: Path, most_bytes: int, on_bytes: Callable[[int], None]) -> None:
        self._spool, self._most_bytes, self._on_bytes = spool, most_bytes, on_bytes
        self._size_bytes = 0
        self._file = spool.open("xb")
        self._columns: dict[str, None] = {}
        self.count = 0

    def add(self, part: str, value: Any, line: int | None, problems: list[Detail]) -> None:
        """Adds a skipped row as it was read, with its line and errors. Raises `TooLarge`."""
        cells = cast("dict[str, Any]", value) if isinstance(value, dict) else {"value": value}
        for name in cells:
            if len(self._columns) < _MAX_COLUMNS:
                self._columns.setdefault(name)
        said = "; ".join(f"{each.field}: {each.reason}" if each.field else each.reason for each in problems)
        said = said if part == "train" else f"{part}: {said}"
        data = json.dumps([line, said, cells], ensure_ascii=False).encode(errors=_SURROGATES) + b"\n"
        self._size_bytes += len(data)
        if self._size_bytes > self._most_bytes:
            raise TooLarge(say("skipped_rows_too_large", most=self._most_bytes))
        self._on_bytes(len(data))
        self._file.write(data)
        self.count += 1

    def write_table(self, target: Path) -> int:
        """Writes the rows as CSV in UTF-8 with a byte order mark, for Excel. Returns its size in bytes."""
        self._file.close()
        names = list(self._columns)
        with (
            self._spool.open(encoding="utf-8", errors=_SURROGATES) as rows,
            target.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file,
        ):
            table = csv.writer(file)
            table.writerow([*_OWN_COLUMNS, *map(harmless, names)])
            for row in rows:
                line, said, cells = json.loads(row)
                table.writerow([line, harmless(said), *(harmless(_text(cells.get(name))) for name in names)])
        self._spool.unlink()
        return target.stat().st_size

    def drop(self) -> None:
        """Removes the temporary file."""
        # On a full disk, closing tries to write again.
        with suppress(OSError):
            self._file.close()
        self._spool.unlink(missing_ok=True)


def harmless(cell: str) -> str:
    """A cell that every spreadsheet reads as text. `trainer_core.reading.values.as_left_out` reverses it."""
    return f"'{cell}" if cell.lstrip("'").startswith(_FORMULA_STARTS) else cell


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
