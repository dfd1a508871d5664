"""Rigs for faults: started by a test for itself, or shared by tests that leave everything as it was."""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tafdil.client import Client
from tests.rig.stack import Rig, find_postgres, with_rows

StartRig = Callable[..., tuple[Rig, Client]]


def open_rig(stack: ExitStack, folder: Path, **options: Any) -> tuple[Rig, Client]:
    if options.get("database") == "postgresql" and find_postgres("initdb") is None:
        pytest.skip("needs the programs of a PostgreSQL server (initdb)")
    rig = stack.enter_context(Rig(folder, **options))
    client = stack.enter_context(Client(rig.url))
    with_rows(rig)
    return rig, client


@pytest.fixture
def start_rig(tmp_path: Path) -> Generator[StartRig]:
    """Starts a rig with the options of `Rig`; it ends with the test."""
    with ExitStack() as stack:
        yield lambda **options: open_rig(stack, tmp_path, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Rig, Client]]:
    """A rig with two workers for tests that leave it healthy.

    On PostgreSQL where a server can be made, else on SQLite: what differs between them is tested on the tables themselves.
    """
    database = "postgresql" if find_postgres("initdb") else "sqlite"
    with ExitStack() as stack:
        yield open_rig(stack, tmp_path_factory.mktemp("rig"), workers=2, database=database)
