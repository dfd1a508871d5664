"""The database: engine, sessions, its clock, migrations. SQLite (one host) or PostgreSQL."""

import socket
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, Float, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.expression import FunctionElement

_POSTGRES_OPTIONS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
# A process that freezes or is cut off mid-transaction loses its locks after this time; our own transactions never idle.
# Without the limit, no worker could take over the job of one that froze there.
_POSTGRES_PATIENCE = "SET idle_in_transaction_session_timeout = '10s'"


# How long a transaction without a deadline waits for SQLite's write lock.
_LOCK_PATIENCE_S = 15.0
# SQLite's own retries grow to a tenth of a second, and a process that writes all the time on a slow disk then always wins.
_LOCK_RETRIES_S = (0.001, 0.002, 0.005, 0.01)
# Connecting, on top of the time for a transaction; the shortest that psycopg accepts.
_CONNECT_S = 2
_READS_ONLY = "tafdil_reads_only"


class db_now(FunctionElement[float]):  # noqa: N801  # used like an SQL function
    """The database's clock, in seconds since 1970 (UTC). Leases compare with this, never with a host's clock."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(element: Any, compiler: Any, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


def this_host() -> str:
    """A name for this machine, shared by its containers. It changes with each boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


class Database:
    """An engine and its transactions.

    Args:
        url: SQLAlchemy URL; `postgresql://` uses psycopg.
        answer_s: seconds after which a transaction fails if the database does not answer, or its locks are not free; for
            processes that answer requests. Others wait for a database that stands still.
    """

    def __init__(self, url: str, answer_s: float | None = None) -> None:
        if url.startswith(("postgresql://", "postgres://")):
            url = "postgresql+psycopg://" + url.partition("://")[2]
        self._answer_s, self._deadline = answer_s, _Deadline()
        options: dict[str, Any] = {}
        if url.startswith("postgresql"):
            # Gives up on a server that vanishes silently within half a minute.
            options = {"connect_args": _POSTGRES_OPTIONS | ({"connect_timeout": _CONNECT_S} if answer_s else {})}
            # A wait for a connection is part of the time for the transaction.
            options |= {"pool_timeout": answer_s} if answer_s else {}
        self.engine: Engine = create_engine(url, pool_pre_ping=True, **options)
        self.serves_one_host = self.engine.dialect.name == "sqlite"
        self._file: _File | None = None
        if self.serves_one_host:
            self._file = _File(Path(str(self.engine.url.database)))
            _prepare_sqlite(self.engine, self._deadline, self._file)
        elif self.engine.dialect.name == "postgresql":
            _prepare_postgresql(self.engine, self._deadline)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @property
    def is_replaced(self) -> bool:
        """Whether the file at an SQLite database's path is not the one that this process has open: its writes are lost."""
        return self._file is not None and self._file.is_replaced

    @contextmanager
    def transaction(self) -> Generator[Session]:
        """A session that commits at the end, or rolls back when an exception leaves the block."""
        with self.within(self._answer_s), self._sessions() as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Generator[Session]:
        """A read-only session. On SQLite it neither waits for writers nor blocks them."""
        with self.within(self._answer_s), self._sessions() as session, session.begin():
            session.connection(execution_options={_READS_ONLY: True})
            yield session

    @contextmanager
    def within(self, seconds: float | None) -> Generator[None]:
        """Bounds the waits of this thread's transactions in the block, together; None: as they are bounded already."""
        before = self._deadline.at
        if seconds is not None:
            self._deadline.at = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline.at = before

    def migrate(self, revision: str = "head") -> None:
        """Migrates the tables to the newest revision, or to a given one."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["engine"] = self.engine
        command.upgrade(config, revision)

    def dispose(self) -> None:
        self.engine.dispose()


class _Deadline(threading.local):
    """When the waits of this thread end, by `time.monotonic`; None: never."""

    at: float | None = None


def _prepare_postgresql(engine: Engine, deadline: _Deadline) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.execute(_POSTGRES_PATIENCE)
        connection.commit()

    if engine.dialect.driver != "psycopg":
        return
    import psycopg

    class Bounded(psycopg.Connection[Any]):
        """A connection that is closed when the server does not answer in time; what it was asked may still happen."""

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            return super().wait(gen if deadline.at is None else self._bounded(gen, deadline.at), *args, **kwargs)

        def _bounded(self, gen: Any, at: float) -> Generator[Any, Any, Any]:
            try:
                state = next(gen)
                while True:
                    # Nothing has arrived when this is 0; psycopg then looks every tenth of a second.
                    ready = yield state
                    if not ready and time.monotonic() > at:
                        self.close()
                        raise psycopg.OperationalError("the server does not answer")
                    state = gen.send(ready)
            except StopIteration as end:
                return end.value

    @event.listens_for(engine, "do_connect")
    def _on_do_connect(_dialect: Any, _record: Any, args: Any, options: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
        return Bounded.connect(*args, **options)


class _File:
    """The file of an SQLite database. `opened` remembers it; a path where none was opened yet is not replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None

    def opened(self) -> None:
        """Remembers the first file: while a process has it open, it must not write to another one of that name."""
        self._identity = self._identity or self._found()

    @property
    def is_replaced(self) -> bool:
        return self._identity is not None and self._found() != self._identity

    def _found(self) -> tuple[int, int] | None:
        """Device and inode of the file at the path; None when there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _prepare_sqlite(engine: Engine, deadline: _Deadline, file: _File) -> None:
    """Sets up the write-ahead log, and transactions that take the write lock at their start unless they only read.

    Each commit is synced: otherwise a power failure could undo the last ones, and lose accepted jobs. A deferred
    transaction that reads and then writes fails with SQLITE_BUSY regardless of the timeout. What is written to a file
    that was deleted or replaced is gone at the next start, so no transaction that writes begins there.
    """

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        file.opened()
        connection.isolation_level = None
        cursor = connection.cursor()
        patience = f"busy_timeout={_LOCK_PATIENCE_S * 1000:.0f}"
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", patience):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        if connection.get_execution_options().get(_READS_ONLY, False):
            connection.exec_driver_sql("BEGIN")
        else:
            _take_write_lock(connection, deadline.at or time.monotonic() + _LOCK_PATIENCE_S)
            # After the wait for the lock. The pool rolls back the connection of a transaction that did not begin.
            if file.is_replaced:
                raise OperationalError("BEGIN IMMEDIATE", None, sqlite3.OperationalError("its file was deleted or replaced"))


def _take_write_lock(connection: Any, ends_at: float) -> None:
    """Begins a transaction that writes. Raises `OperationalError` if the lock is never free.

    It asks often: see `_LOCK_RETRIES_S`.
    """
    sqlite: sqlite3.Connection = connection.connection.driver_connection
    tried = 0
    sqlite.execute("PRAGMA busy_timeout=0")
    try:
        while time.monotonic() < ends_at:
            with suppress(sqlite3.OperationalError):
                sqlite.execute("BEGIN IMMEDIATE")
                return
            time.sleep(_LOCK_RETRIES_S[min(tried, len(_LOCK_RETRIES_S) - 1)])
            tried += 1
        # The last try raises SQLAlchemy's error.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    finally:
        sqlite.execute(f"PRAGMA busy_timeout={_LOCK_PATIENCE_S * 1000:.0f}")
