"""Datasets on their way in: bytes to disk, every row checked while it arrives."""

import hashlib
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.errors import TooLarge
from jobs.records import DatasetRecord
from jobs.settings import Settings
from trainer_core.rows import RowChecker


class DatasetUpload:
    """Bytes of a dataset on their way to disk, checked while they arrive. `finish` or `abort` ends it.

    The file gets its name only when every row is good, so a broken upload leaves nothing.
    """

    def __init__(self, settings: Settings, name: str | None, store: Callable[[dict[str, Any]], DatasetRecord]) -> None:
        self._settings, self._name, self._store = settings, name, store
        self._id = uuid.uuid4().hex
        self._path: Path = settings.datasets_dir / f".{self._id}.part"
        self._file = self._path.open("xb")
        self._checker = RowChecker(path=self._path)
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def write(self, data: bytes) -> None:
        """Takes the next bytes. Raises `TooLarge`, or `DataInvalid` when the rows cannot be read on."""
        self._size_bytes += len(data)
        if self._size_bytes > self._settings.max_upload_bytes:
            raise TooLarge(f"the dataset is larger than {self._settings.max_upload_bytes:,} bytes")
        self._digest.update(data)
        self._file.write(data)
        self._checker.feed(data)

    def finish(self) -> DatasetRecord:
        """Stores the dataset. Raises `DataInvalid` with every broken row (up to a limit)."""
        self._file.flush()
        report = self._checker.close()
        os.fsync(self._file.fileno())
        self._file.close()
        final = self._settings.datasets_dir / f"{self._id}.rows"
        self._path.rename(final)
        try:
            return self._store(
                {
                    "id": self._id,
                    "name": self._name,
                    "format": report.format,
                    "kind": report.kind,
                    "train_rows": report.train_rows,
                    "validation_rows": report.validation_rows,
                    "desirable_rows": report.desirable_rows,
                    "size_bytes": self._size_bytes,
                    "sha256": self._digest.hexdigest(),
                }
            )
        except BaseException:
            final.unlink(missing_ok=True)
            raise

    def abort(self) -> None:
        """Removes what arrived. Does nothing after `finish`."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._path.unlink()
