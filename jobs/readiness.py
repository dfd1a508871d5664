"""Whether the service can store what it is sent: the database takes writes, and the data directory has room."""

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.repository import dispatch, signs
from jobs.repository.signs import Part
from jobs.settings import Settings
from trainer_core.disk import is_disk_full

DatabaseState = Literal["up", "full", "down", "replaced"]
DirectoryState = Literal["writable", "full", "not_writable"]
_WRITTEN_BYTES = 4096
# Anyone may ask, as often as they like, and each look writes to the disk.
_SHARED_S = 1.0


@dataclass(frozen=True)
class Storage:
    """What a look found."""

    database: DatabaseState
    data_directory: DirectoryState


class StorageCheck:
    """Looks at the database and the data directory by writing to them. Callers share a look for about a second."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._lock = threading.Lock()
        self._found: Storage | None = None
        self._looked_at = 0.0

    def look(self) -> Storage:
        """`replaced`: the file at the database's path is not the one that this process has open, so writes are refused."""
        with self._lock:
            if self._found is None or time.monotonic() - self._looked_at >= _SHARED_S:
                self._found = Storage(self._write_row(), self._write_file())
                self._looked_at = time.monotonic()
            found = self._found
        return replace(found, database="replaced") if self._database.is_replaced else found

    def parts(self) -> list[Part]:
        """The workers and dispatchers that have given signs of life. Raises the database's errors."""
        with self._database.reading() as session:
            return signs.parts(session)

    def _write_row(self) -> DatabaseState:
        try:
            with self._database.transaction() as session:
                dispatch.write(session)
        except DatabaseError as error:
            return "full" if is_disk_full(error) else "down"
        return "up"

    def _write_file(self) -> DirectoryState:
        path = self._settings.data_dir / f".ready-{os.getpid()}"
        try:
            with path.open("wb") as file:
                file.write(bytes(_WRITTEN_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return "full" if is_disk_full(error) else "not_writable"
        finally:
            # A file system that is mounted read-only refuses this even where there is no file.
            with suppress(OSError):
                path.unlink()
        return "writable"
