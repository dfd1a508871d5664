"""A disk that is full where the API writes: a clear error that can be retried, and nothing left behind."""

import errno
import os
import resource
import shutil
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

from api.app import create_app
from jobs.settings import Settings
from tests.api import BASE_URL, client, database, queue
from tests.conftest import DATA
from tests.fakes import FakeQueue
from trainer_core.disk import is_disk_full

__all__ = ["client", "database", "queue"]

KIB = 2**10


@contextmanager
def no_file_above(size_bytes: int) -> Generator[None]:
    """Writing beyond a size fails with EFBIG, as it fails with ENOSPC on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
    assert client.get("/readyz").status_code == 200, "as soon as there is room"


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


def test_a_database_file_that_was_replaced_is_not_ready(tmp_path: Path) -> None:
    """What is written to a deleted file is gone at the next start, so nothing more may be accepted."""
    settings = Settings(data_dir=tmp_path / "data", redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    with TestClient(create_app(settings, FakeQueue()), BASE_URL) as client:
        assert client.get("/readyz").json()["database"] == "up"
        file = settings.data_dir / "tafdil.sqlite3"
        copy = shutil.copy(file, tmp_path / "copy")
        file.unlink()
        assert client.get("/readyz").json()["database"] == "replaced"
        shutil.move(copy, file)
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["database"]) == (503, "replaced")


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
