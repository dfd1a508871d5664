"""Whether the service can store what it is sent: the database takes writes, and the data directory has room."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.repository import dispatch
from jobs.settings import Settings
from trainer_core.disk import is_disk_full

DatabaseState = Literal["up", "down", "replaced"]
DirectoryState = Literal["writable", "full", "not_writable"]
_WRITTEN_BYTES = 4096


class StorageCheck:
    """Looks at the database and the data directory by writing to them.

    Create it once the database is migrated: it remembers which file an SQLite database is.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._file = Path(str(database.engine.url.database)) if database.serves_one_host else None
        self._identity = _identity(self._file)

    def database(self) -> DatabaseState:
        """`replaced`: the file at the database's path is not the one that this process has open, so writes are lost."""
        if self._file and _identity(self._file) != self._identity:
            return "replaced"
        try:
            with self._database.transaction() as session:
                dispatch.check_writable(session)
        except DatabaseError:
            return "down"
        return "up"

    def data_directory(self) -> DirectoryState:
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


def _identity(file: Path | None) -> tuple[int, int] | None:
    """Device and inode of a file; None when there is none."""
    try:
        found = file.stat() if file else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None
