"""The API over real HTTP, in a thread of the test's process, on a real database and with a fake queue: no workers."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from api.app import create_app
from jobs.database import Database
from jobs.settings import Settings
from tests.fakes import FakeQueue


@dataclass(frozen=True)
class Live:
    """A service that listens on a port of its own."""

    url: str
    app: FastAPI
    queue: FakeQueue
    settings: Settings

    @property
    def database(self) -> Database:
        return self.app.state.service.database


@contextmanager
def serving(settings: Settings) -> Generator[Live]:
    """Serves until the block ends."""
    queue = FakeQueue()
    app = create_app(settings, queue)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Live(f"http://127.0.0.1:{port}", app, queue, settings)
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """On SQLite alone: clients do not know which database it is."""
    found = Settings(data_dir=tmp_path / "data", redis_url=SecretStr("redis://127.0.0.1:1/0"))
    found.make_directories()
    return found


@pytest.fixture
def live(settings: Settings) -> Generator[Live]:
    with serving(settings) as found:
        yield found
