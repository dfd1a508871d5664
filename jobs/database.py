"""The database: engine, sessions, its clock, migrations. SQLite (one host) or PostgreSQL."""

import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, Float, create_engine, event
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
    """

    def __init__(self, url: str) -> None:
        if url.startswith(("postgresql://", "postgres://")):
            url = "postgresql+psycopg://" + url.partition("://")[2]
        # Gives up on a server that vanishes silently within half a minute.
        options = {"connect_args": _POSTGRES_OPTIONS} if url.startswith("postgresql") else {}
        self.engine: Engine = create_engine(url, pool_pre_ping=True, **options)
        self.serves_one_host = self.engine.dialect.name == "sqlite"
        if self.serves_one_host:
            _prepare_sqlite(self.engine)
        elif self.engine.dialect.name == "postgresql":
            _prepare_postgresql(self.engine)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Generator[Session]:
        """A session that commits at the end, or rolls back when an exception leaves the block."""
        with self._sessions() as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Generator[Session]:
        """A read-only session. On SQLite it neither waits for writers nor blocks them."""
        with self._sessions() as session, session.begin():
            session.connection(execution_options={_READS_ONLY: True})
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Migrates the tables to the newest revision, or to a given one."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["engine"] = self.engine
        command.upgrade(config, revision)

    def dispose(self) -> None:
        self.engine.dispose()


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.execute(_POSTGRES_PATIENCE)
        connection.commit()


def _prepare_sqlite(engine: Engine) -> None:
    """Sets up the write-ahead log, and transactions that take the write lock at their start unless they only read.

    Each commit is synced: otherwise a power failure could undo the last ones, and lose accepted jobs. A deferred
    transaction that reads and then writes fails with SQLITE_BUSY regardless of the timeout.
    """

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        reads_only = connection.get_execution_options().get(_READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
