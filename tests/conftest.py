"""Fixtures that every kind of test uses."""

import gc
import os
import sys
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from pydantic import SecretStr

from jobs.database import Database
from jobs.places import SHIPPED_DATA_DIR
from jobs.settings import SHIPPED_MODELS_DIR, Settings
from tests import migrated
from tests.servers import postgres_schema

# Small trainings gain nothing from a second thread, and where all cores are busy its waiting costs many times as much. Torch
# reads this when it is first imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tables are as wide as this says, and the runner's processes have it of the terminal that they were started from.
os.environ.pop("COLUMNS", None)
# Tests that want the report about a dataset ask for it; one after each upload would take time from all others.
os.environ["TAFDIL_REPORT_AT_UPLOAD"] = "false"

# How long an example takes says nothing where the machine is busy with other work.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

migrated.install()

# How many files that compute come between two that wait.
_COMPUTING_BETWEEN = 4

TINY_MODEL = SHIPPED_MODELS_DIR / "tafdil" / "tiny-arabic-qwen-2"
DATA = SHIPPED_DATA_DIR


def keep_what_is_there() -> None:
    """Spares the collector what is imported by now: walking over it took a third of the time of a test that trains."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts each file of faults, which mostly waits, between files that compute: the cores stay busy."""
    files = list(dict.fromkeys(item.path for item in items))
    waiting = [file for file in files if file.parent.name == "faults"]
    if waiting:
        first = files.index(waiting[0])
        place = {file: float(i) for i, file in enumerate(file for file in files if file not in waiting)}
        place |= {file: first + _COMPUTING_BETWEEN * i - 0.5 for i, file in enumerate(waiting)}
        items.sort(key=lambda item: place[item.path])


def pytest_collection_finish() -> None:
    keep_what_is_there()
    # Accelerate looks into the metadata of installed packages dozens of times in each run.
    if accelerate := sys.modules.get("accelerate.utils.imports"):
        accelerate._is_package_available = cache(accelerate._is_package_available)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    yield
    if nextitem is not None and nextitem.path != item.path:
        # Its fixtures are gone, and what its tests imported is there.
        keep_what_is_there()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own TAFDIL_ and OTEL_ variables must not reach a test."""
    for name in list(os.environ):
        if name.startswith(("TAFDIL_", "OTEL_")) and not name.startswith(("TAFDIL_TEST_", "TAFDIL_REPORT_")):
            monkeypatch.delenv(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.sqlite3'}"
    else:
        with postgres_schema() as url:
            yield url


@pytest.fixture
def database(database_url: str) -> Generator[Database]:
    found = Database(database_url)
    found.migrate()
    yield found
    found.dispose()


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    # Nothing listens on this port: tests that need a broker say so.
    found = Settings(
        data_dir=tmp_path / "data",
        database_url=SecretStr(database_url),
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        max_body_bytes=64 * 1024,
        max_upload_bytes=256 * 1024,
    )
    found.make_directories()
    return found


@pytest.fixture
def spec() -> dict[str, Any]:
    """A small IPO job on the sample data."""
    return {
        "method": "ipo",
        "model_name": "tafdil/tiny-arabic-qwen-2",
        "dataset_path": "samples/pairs_train.jsonl",
        "learning_rate": 1e-3,
        "learning_rate_cap": None,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "logging_steps": 1,
    }
