"""A disk that is full where the API writes: a clear error that can be retried, and nothing left behind."""

import errno
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from api.app import create_app
from jobs import readiness
from jobs.database import Database
from jobs.records import DispatchRecord
from jobs.settings import Settings
from tests.api import BASE_URL, client, database, queue
from tests.conftest import DATA
from tests.disks import no_file_above, small_disk
from tests.fakes import FakeQueue
from tests.stack import until
from trainer_core.disk import is_disk_full

__all__ = ["client", "database", "queue"]

KIB = 2**10


@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/datasets/check"])
def test_an_upload_that_finds_no_room(path: str, client: TestClient, settings: Settings) -> None:
    body = (DATA / "pairs_train.jsonl").read_bytes()
    with no_file_above(96 * KIB):
        reply = client.post(path, content=body)
    assert reply.status_code == 507, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["retryable"], error["user_fault"]) == ("disk_full", True, False)
    assert "full" in error["message"]
    assert [file for file in (settings.data_dir / "datasets").rglob("*") if file.is_file()] == []
    assert client.get("/v1/datasets").json()["datasets"] == []
    assert client.post(path, content=body).status_code in (200, 201), "as soon as there is room"


def test_a_full_disk_is_not_ready(client: TestClient) -> None:
    with no_file_above(1):
        reply = client.get("/readyz")
    assert reply.status_code == 503
    assert (reply.json()["ready"], reply.json()["data_directory"]) == (False, "full")
    until(lambda: client.get("/readyz").status_code == 200)


def test_a_full_disk_of_the_database_is_not_ready(tmp_path: Path, spec: dict[str, Any]) -> None:
    """With a data directory elsewhere, which has room."""
    disk = tmp_path / "disk"
    with small_disk(disk, "4m"):
        settings = Settings(
            data_dir=tmp_path / "data",
            database_url=SecretStr(f"sqlite:///{disk / 'tafdil.sqlite3'}"),
            redis_url=SecretStr("redis://127.0.0.1:1/0"),
        )
        settings.make_directories()
        with TestClient(create_app(settings, FakeQueue()), BASE_URL) as client:

            def database() -> str:
                reply = client.get("/readyz").json()
                assert reply["data_directory"] == "writable"
                assert reply["ready"] is (reply["database"] == "up")
                return reply["database"]

            assert database() == "up"
            blocker = disk / "blocker"
            with suppress(OSError), blocker.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(KIB))
            until(lambda: database() == "full")
            assert client.get("/readyz").status_code == 503
            assert client.post("/v1/jobs", json=spec).json()["error"]["code"] == "disk_full"
            blocker.unlink()
            until(lambda: database() == "up")
            assert client.post("/v1/jobs", json=spec).status_code == 202


def test_those_who_ask_for_readiness_share_what_is_written(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no key and has no limit: otherwise anyone could keep the disk and the database's write lock busy."""
    monkeypatch.setattr(readiness, "_SHARED_S", 3600.0)

    def written() -> float | None:
        with database.reading() as session:
            return session.scalar(select(DispatchRecord.reap_from).where(DispatchRecord.id == 0))

    assert written() is None
    with ThreadPoolExecutor(8) as pool:
        assert {reply.status_code for reply in pool.map(lambda _: client.get("/readyz"), range(40))} == {200}
    first = written()
    assert first is not None
    assert client.get("/readyz").status_code == 200
    assert written() == first
    monkeypatch.setattr(readiness, "_SHARED_S", 0.0)
    until(lambda: client.get("/readyz").is_success and written() != first)


def test_a_read_only_data_directory_is_not_ready(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that is mounted read-only refuses to open and to delete, even what is not there."""

    def refuse(path: Path, *_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        patched.setattr(Path, "unlink", refuse)
        reply = client.get("/readyz")
    assert reply.status_code == 503
    assert (reply.json()["ready"], reply.json()["data_directory"]) == (False, "not_writable")


def test_a_database_file_that_was_replaced_is_not_ready(tmp_path: Path, spec: dict[str, Any]) -> None:
    """What is written to a deleted file is gone at the next start, so nothing more is accepted."""
    settings = Settings(data_dir=tmp_path / "data", redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    rows = (DATA / "pairs_train.jsonl").read_bytes()
    with TestClient(create_app(settings, FakeQueue()), BASE_URL) as client:

        def refuses() -> None:
            reply = client.get("/readyz")
            assert (reply.status_code, reply.json()["database"]) == (503, "replaced")
            for reply in (client.post("/v1/jobs", json=spec), client.post("/v1/datasets", content=rows)):
                assert reply.json()["error"]["message_code"] == "database_unavailable"
                assert reply.status_code == 503
            assert list(settings.datasets_dir.iterdir()) == []

        assert client.get("/readyz").json()["database"] == "up"
        assert client.post("/v1/jobs", json=spec).status_code == 202
        file, aside = settings.data_dir / "tafdil.sqlite3", tmp_path / "aside"
        copy = shutil.copy(file, tmp_path / "copy")
        file.rename(aside)
        refuses()
        shutil.copy(copy, file)
        refuses()
        aside.rename(file)
        # The file that it has open is back.
        until(lambda: client.get("/readyz").json()["database"] == "up")
        assert client.post("/v1/jobs", json=spec).status_code == 202
        assert len(client.get("/v1/jobs").json()["jobs"]) == 2


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (RuntimeError("No space left on device (os error 28)"), True),
        (OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full")), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked")), False),
    ],
)
def test_what_a_full_disk_says(error: Exception, is_full: bool) -> None:
    assert is_disk_full(error) is is_full
