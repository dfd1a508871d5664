"""A database that stands still: a process that answers requests gives up in time, and others wait for it."""

import asyncio
import gc
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from api.sse import Waker
from jobs.database import Database
from jobs.settings import Settings
from tests.rig.proxy import Proxy
from tests.servers import postgres_schema

# Far above the half second that is asked for, and far below what each of these waits would take without it.
SOON_S = 60.0


def test_a_server_that_stands_still_fails_the_transaction_and_not_the_next_one() -> None:
    with postgres_schema() as url:
        host, _, rest = url.partition("@")[2].partition(":")
        port = rest.partition("/")[0]
        proxy = Proxy(int(port))
        database = Database(url.replace(f"{host}:{port}", f"127.0.0.1:{proxy.port}"), answer_s=0.5)
        with database.reading() as session:
            assert session.scalar(text("SELECT 1")) == 1
        proxy.is_hole = True
        began_at = time.monotonic()
        for _ in range(2):
            with pytest.raises(OperationalError), database.transaction() as session:
                session.scalar(text("SELECT 1"))
        assert time.monotonic() - began_at < SOON_S
        proxy.mend()
        with database.transaction() as session:
            assert session.scalar(text("SELECT 1")) == 1
        database.dispose()
        proxy.close()


def test_a_statement_that_takes_too_long_fails() -> None:
    with postgres_schema() as url:
        database = Database(url, answer_s=0.5)
        with pytest.raises(OperationalError, match="does not answer"), database.reading() as session:
            session.execute(text("SELECT pg_sleep(30)"))
        with database.reading() as session:
            assert session.scalar(text("SELECT 1")) == 1
        database.dispose()


def test_a_process_without_a_bound_waits() -> None:
    with postgres_schema() as url:
        database = Database(url)
        with database.reading() as session:
            session.execute(text("SELECT pg_sleep(1)"))
        database.dispose()


def test_a_write_lock_that_is_held_fails_the_transaction_and_not_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "a.sqlite3"
    database, patient = Database(f"sqlite:///{file}", answer_s=0.5), Database(f"sqlite:///{file}")
    with database.transaction() as session:
        session.execute(text("CREATE TABLE a (b INTEGER)"))
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"), database.transaction() as session:
            session.execute(text("INSERT INTO a VALUES (1)"))
        with database.reading() as session:
            assert session.scalar(text("SELECT count(*) FROM a")) == 0, "readers do not wait"
        waits = threading.Event()

        def write() -> None:
            waits.set()
            with patient.transaction() as session:
                session.execute(text("INSERT INTO a VALUES (2)"))

        thread = threading.Thread(target=write)
        thread.start()
        waits.wait(SOON_S)
        time.sleep(1)
        other.execute("COMMIT")
        thread.join(SOON_S)
    with database.transaction() as session:
        session.execute(text("INSERT INTO a VALUES (3)"))
        assert session.scalar(text("SELECT sum(b) FROM a")) == 5
    database.dispose()
    patient.dispose()


def test_a_read_that_fails_after_its_streams_have_left_is_not_logged_as_a_defect(caplog: pytest.LogCaptureFixture) -> None:
    begun, may_fail = threading.Event(), threading.Event()

    def read() -> None:
        begun.set()
        may_fail.wait(SOON_S)
        raise RuntimeError("the database is away")

    async def leave() -> None:
        waker = Waker(Settings())
        stream = asyncio.create_task(waker.shared(("a",), read))
        await asyncio.to_thread(begun.wait, SOON_S)
        stream.cancel()
        await asyncio.wait([stream])
        may_fail.set()
        while waker._reads:
            await asyncio.sleep(0.01)

    asyncio.run(leave())
    gc.collect()
    assert begun.is_set()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
