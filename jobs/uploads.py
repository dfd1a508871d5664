"""Receives datasets: writes the bytes to disk and checks every row as it arrives."""

import hashlib
import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jobs.broken_rows import BrokenRows
from jobs.errors import TooLarge
from jobs.records import DatasetRecord
from jobs.settings import Settings
from trainer_core.errors import DataInvalid
from trainer_core.reading_options import AS_IT_IS, ReadingOptions
from trainer_core.row_conversion import RowsTooLarge, convert
from trainer_core.rows import OnBroken, OnRow, RowChecker, RowReport
from trainer_core.wording import say

# Maximum number of a file's columns to show.
_NAMED_COLUMNS = 200
_SAMPLE_ROWS = 10
# Bytes of an upload between checks of the quota.
_CHECKED_EVERY_BYTES = 2**20
# Partial uploads older than this belong to killed processes.
_KEPT_S = 86_400

log = logging.getLogger(__name__)


class Room:
    """Counts an upload's bytes as they are written, with those of the tenant's other uploads, against its quota.

    The count is per process: each API process adds the bytes it receives to what is stored. Rows that are written anew take
    the place of what arrived, so the larger of the two counts.

    Args:
        check: raises `TooLarge` if the tenant may not store this many more bytes.
    """

    _arriving: ClassVar[Counter[str]] = Counter()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, tenant: str = "", check: Callable[[int], None] = lambda _: None) -> None:
        self._tenant, self._check = tenant, check
        self._arrived = self._rewritten = self._taken = 0
        self._unchecked = _CHECKED_EVERY_BYTES

    def take(self, size: int) -> None:
        """Counts arriving bytes before they are written. Raises what `check` raises."""
        self._arrived += size
        self._hold()

    def rewrite(self, size: int) -> None:
        """Counts bytes of rows that are written anew, before they are. Raises what `check` raises."""
        self._rewritten += size
        self._hold()

    def _hold(self) -> None:
        size = max(self._arrived, self._rewritten) - self._taken
        if not size:
            return
        with self._lock:
            self._taken += size
            self._arriving[self._tenant] += size
            together = self._arriving[self._tenant]
        self._unchecked += size
        if self._unchecked >= _CHECKED_EVERY_BYTES:
            self._unchecked = 0
            self._check(together)

    def release(self) -> None:
        """Stops counting the upload: it was stored, or its bytes are gone."""
        with self._lock:
            self._arriving[self._tenant] -= self._taken
            self._taken = 0
            if not self._arriving[self._tenant]:
                del self._arriving[self._tenant]


class _Arriving:
    """Writes arriving bytes to a temporary file and checks their rows. `abort` cleans up."""

    def __init__(
        self,
        settings: Settings,
        options: ReadingOptions,
        room: Room | None,
        on_row: OnRow | None = None,
        on_broken: OnBroken | None = None,
    ) -> None:
        self._settings, self._options, self._room = settings, options, room or Room()
        self._id = uuid.uuid4().hex
        self._path = self._part("upload")
        self._file = self._path.open("xb")
        self._checker = RowChecker(on_row, self._path, options, on_broken)
        self._size_bytes = 0

    def _part(self, what: str) -> Path:
        return self._settings.datasets_dir / f".{self._id}.{what}.part"

    def _take(self, data: bytes) -> None:
        self._size_bytes += len(data)
        if self._size_bytes > self._settings.max_upload_bytes:
            raise TooLarge(say("dataset_too_large", most=self._settings.max_upload_bytes))
        self._room.take(len(data))
        self._file.write(data)

    def abort(self) -> None:
        """Removes the received bytes. Does nothing after a dataset was stored."""
        # On a full disk, closing tries to write again.
        with suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)
        self._room.release()


class DatasetUpload(_Arriving):
    """Stores a dataset and checks it while its bytes arrive. `finish` or `abort` ends the upload.

    The file gets its final name only when every row is valid, so a failed upload leaves nothing. A file in Tafdil's own
    format is stored unchanged. Any other is converted once, so later readers need not know how it was read.
    """

    def __init__(
        self,
        settings: Settings,
        name: str | None,
        store: Callable[[dict[str, Any]], DatasetRecord],
        options: ReadingOptions = AS_IT_IS,
        room: Room | None = None,
    ) -> None:
        self._broken: BrokenRows | None = None
        super().__init__(settings, options, room, on_broken=self._leave_out)
        self._name, self._store = name, store
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Takes the next bytes. Raises `TooLarge`, or `DataInvalid` if the rest cannot be read."""
        self._take(data)
        self._digest.update(data)
        self._checker.feed(data)

    def finish(self) -> DatasetRecord:
        """Stores the dataset. Raises `DataInvalid` with every invalid row (up to a limit), and `DataUnclear`."""
        self._file.flush()
        report = self._checker.close()
        os.fsync(self._file.fileno())
        self._file.close()
        rows = self._stored(report)
        broken_bytes = self._broken.write_table(self._part("table")) if self._broken else 0
        self._room.release()
        final, broken = (self._settings.datasets_dir / f"{self._id}.{ending}" for ending in ("rows", "broken.csv"))
        rows.path.rename(final)
        try:
            if self._broken:
                self._part("table").rename(broken)
            return self._store(
                {
                    "id": self._id,
                    "name": self._name,
                    "format": rows.format,
                    "kind": report.kind,
                    "train_rows": report.train_rows,
                    "validation_rows": report.validation_rows,
                    "desirable_rows": report.desirable_rows,
                    "size_bytes": rows.size_bytes + broken_bytes,
                    "sha256": rows.sha256,
                    "reading": {
                        **reading_of(report),
                        "source_sha256": self._digest.hexdigest(),
                        "options": self._options.model_dump(mode="json", exclude_defaults=True),
                    },
                }
            )
        except BaseException:
            final.unlink(missing_ok=True)
            broken.unlink(missing_ok=True)
            raise

    def abort(self) -> None:
        super().abort()
        if self._broken:
            self._broken.drop()
        for what in ("rows", "table"):
            self._part(what).unlink(missing_ok=True)

    def _leave_out(self, *row: Any) -> None:
        self._broken = self._broken or BrokenRows(self._part("broken"), self._settings.max_upload_bytes, self._room.rewrite)
        self._broken.add(*row)

    def _stored(self, report: RowReport) -> "_Stored":
        """The file to keep: the uploaded one, or its rows in Tafdil's format. Raises `DataInvalid` and `TooLarge`."""
        if report.is_plain:
            return _Stored(self._path, str(report.format), self._size_bytes, self._digest.hexdigest())
        path = self._part("rows")
        most = self._settings.max_upload_bytes
        try:
            convert(self._path, path, self._options, most, self._room.rewrite)
            size_bytes = path.stat().st_size
        except RowsTooLarge:
            size_bytes = most + 1
        if size_bytes > most:
            raise TooLarge(say("dataset_rows_too_large", most=most))
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._path.unlink()
        return _Stored(path, "json" if report.validation_rows else "jsonl", size_bytes, sha256)


@dataclass(frozen=True)
class _Stored:
    """A file stored as a dataset."""

    path: Path
    format: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Found:
    """The result of a check: the report, the first rows in Tafdil's format and as read, and any error of an upload."""

    report: RowReport
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    first_values: list[Any] = field(default_factory=list[Any])
    error: DataInvalid | None = None


class DatasetCheck(_Arriving):
    """Reads a file like an upload, but does not store it. `abort` must end the check."""

    def __init__(self, settings: Settings, options: ReadingOptions = AS_IT_IS, room: Room | None = None) -> None:
        super().__init__(settings, options, room, on_row=self._show)
        self._rows: list[dict[str, Any]] = []
        self._error: DataInvalid | None = None

    def write(self, data: bytes) -> None:
        """Takes the next bytes. After an error it ignores them, because the response follows the end of the body.

        Raises `TooLarge`.
        """
        self._take(data)
        if self._error is None:
            try:
                self._checker.feed(data)
            except DataInvalid as error:
                self._error = error

    def finish(self) -> Found:
        """The result."""
        self._file.flush()
        if self._error is None:
            try:
                self._checker.close()
            except DataInvalid as error:
                self._error = error
        return Found(self._checker.report, self._rows, self._checker.first_values, self._error)

    def _show(self, part: str, row: dict[str, Any], line: int) -> None:
        if part == "train" and len(self._rows) < _SAMPLE_ROWS:
            self._rows.append({**row, "row": line})


def sweep(settings: Settings) -> int:
    """Deletes partial uploads of killed processes. Returns the number of bytes freed.

    An upload writes to its files until it ends, and every request ends long before they are a day old.
    """
    freed = 0
    for path in settings.datasets_dir.glob(".*.part"):
        # Another process may sweep, or the upload may end, at the same time.
        with suppress(OSError):
            found = path.lstat()
            if time.time() - found.st_mtime > _KEPT_S:
                path.unlink()
                freed += found.st_size
    if freed:
        log.info("deleted %d bytes of unfinished uploads", freed)
    return freed


def reading_of(report: RowReport) -> dict[str, Any]:
    """How a file was read, as stored in a dataset's record."""
    return {
        "file_kind": report.file_kind or report.format,
        "encoding": report.encoding,
        "layout": report.layout,
        "mapping": {field: _storable(column) for field, column in report.mapping.items()},
        "unused": [_storable(column) for column in report.unused[:_NAMED_COLUMNS]],
        "skipped_rows": report.skipped_rows,
        "warnings": [{**warning.as_dict(), "field": _storable(warning.field)} for warning in report.warnings],
    }


def _storable(name: str) -> str:
    """A column's name that databases and JSON can store: without NUL and unpaired surrogates."""
    return name.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
