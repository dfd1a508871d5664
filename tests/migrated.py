"""New databases of tests get their tables from the first one of this process, as a migration takes longer than most tests.

The first database on each kind of server is migrated. On SQLite later ones are copies of that file; on PostgreSQL the
statements that changed something run again. Migrating an existing database, or to a given revision, is always done for real.
"""

import atexit
import shutil
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import event, inspect

from jobs.database import Database

_migrate = Database.migrate
_lock = threading.Lock()
_scripts: list[str] = []


def install() -> None:
    Database.migrate = _prepare  # type: ignore[method-assign]


def _prepare(database: Database, revision: str = "head") -> None:
    url = database.engine.url
    if revision != "head":
        _migrate(database, revision)
    elif database.engine.dialect.name == "sqlite":
        path = Path(url.database or "")
        if url.database in (None, "", ":memory:") or path.exists():
            _migrate(database)
            return
        with _lock:
            template = _template()
        shutil.copyfile(template, path)
    elif inspect(database.engine).get_table_names():
        _migrate(database)
    else:
        with _lock:
            _repeat(database)


@cache
def _template() -> Path:
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "migrated.sqlite3"
    first = Database(f"sqlite:///{path}")
    _migrate(first)
    first.dispose()
    assert list(path.parent.iterdir()) == [path], "the log is in the file"
    return path


def _repeat(database: Database) -> None:
    if _scripts:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(_scripts[0])
        return
    found: list[tuple[str, Any]] = []
    event.listen(database.engine, "before_cursor_execute", lambda _c, _u, text, values, *_: found.append((text, values)))
    _migrate(database)
    changes = [each for each in found if not each[0].lstrip().upper().startswith(("SELECT", "SHOW"))]
    if not any(values for _, values in changes):
        _scripts.append(";\n".join(text for text, _ in changes))
