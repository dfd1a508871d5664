"""Every way to read a file agrees on it: library, command line, upload, check, conversion and dry run."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from typer.testing import CliRunner

from api.app import create_app
from jobs.settings import Settings
from tafdil.cli import app
from tests.api import BASE_URL
from tests.fakes import FakeQueue
from tests.layout_samples import SAMPLES, option_of
from tests.training import config
from tests.unit.test_reading_options import ALL as KINDS
from tests.unit.test_reading_tables import EQUAL
from tests.unit.test_reading_words import FILES, rows
from trainer_core.dry_run import dry_run
from trainer_core.errors import DataInvalid
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_conversion import convert
from trainer_core.rows import RowReport, check_file

REPORTED = ("file_kind", "encoding", "layout", "mapping", "unused", "skipped_rows")
COUNTED = ("kind", "train_rows", "validation_rows", "desirable_rows")
PLACE = Path(os.environ.get("TAFDIL_TEST_CASES_DIR", "absent"))


def corpus() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    for layout, samples in SAMPLES.items():
        for name, sample in samples.items():
            yield f"{layout}: {name}", rows(*sample), option_of(layout).model_dump(exclude_defaults=True)
    for code, (data, options) in FILES.items():
        yield f"code {code}", data, options
        if "on_invalid" not in options:
            yield f"code {code}, skipped", data, {**options, "on_invalid": "skip"}
    for name, (data, _kind, _encoding) in EQUAL.items():
        yield f"table {name}", data, {}
    for name, data in KINDS.items():
        yield f"kind {name}", data, {}
        yield f"kind {name}, wrong column", data, {"map": {"prompt": "nothing"}}


CORPUS = {name: (data, options) for name, data, options in corpus()}
CASES = sorted(path for path in PLACE.rglob("*") if path.is_file() and path.suffix not in (".md", ".py", ".jinja"))


def as_parameters(options: dict[str, Any]) -> dict[str, Any]:
    pairs = [f"{field}:{column}" for field, column in options.get("map", {}).items()]
    return {**options, "map": pairs} if pairs else options


def as_arguments(options: dict[str, Any]) -> list[str]:
    found = [word for field, column in options.get("map", {}).items() for word in ("--map", f"{field}={column}")]
    for name, value in options.items():
        found += [f"--{name.replace('_', '-')}", str(value)] if name != "map" else []
    return found


def of_error(error: dict[str, Any]) -> dict[str, Any]:
    return {name: error.get(name) for name in ("code", "message", "details", "question")}


def of_report(report: RowReport) -> dict[str, Any]:
    found = {name: getattr(report, name) for name in (*REPORTED, *COUNTED)}
    return found | {"warnings": [warning.as_dict() for warning in report.warnings]}


def of_reply(reply: dict[str, Any]) -> dict[str, Any]:
    return {name: reply[name] for name in (*REPORTED, *COUNTED, "warnings")}


def in_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def by_library(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    try:
        return in_json(of_report(check_file(path, options=ReadingOptions(**options))))
    except DataInvalid as error:
        return in_json(of_error(error.as_dict()))


def by_terminal(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["data", "check", str(path), *as_arguments(options), "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["valid"] else 3), result.stderr
    return of_reply(found) if found["valid"] else of_error(found)


def by_check(client: TestClient, data: bytes, options: dict[str, Any]) -> dict[str, Any]:
    found = client.post("/v1/datasets/check", content=data, params=as_parameters(options)).json()
    assert found["valid"] is (found["error"] is None)
    assert len(found["conversations"]) == len(found["rows"]) <= 10
    return of_reply(found) if found["valid"] else of_error(found["error"])


def by_upload(client: TestClient, data: bytes, options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    reply = client.post("/v1/datasets", content=data, params=as_parameters(options))
    if reply.status_code != 201:
        assert reply.status_code == 422
        return of_error(reply.json()["error"]), None
    return of_reply(reply.json()), reply.json()["id"]


def by_dry_run(path: Path, kind: str | None, folder: Path) -> dict[str, Any] | None:
    """What a dry run says of a file: how many rows it has, or why they cannot be read. None: nothing in them trains."""
    method = "ipo" if kind == "pairs" else "kto"
    try:
        data = dry_run(config(method, folder, dataset_path=str(path), max_steps=1))["data"]
    except DataInvalid as error:
        # What a training finds in the tokens of its rows has no code: these rows were read.
        return in_json(of_error(error.as_dict())) if any(detail.code for detail in error.details) else None
    return {
        part: data[part]["rows"]
        + data[part]["rows_dropped"]
        + sum(each["rows"] for each in data[part]["findings"] if each["dropped"])
        if part in data
        else 0
        for part in ("train", "validation")
    }


def agree(
    client: TestClient, settings: Settings, path: Path, options: dict[str, Any], folder: Path, untrained: Any = ...
) -> dict[str, Any]:
    """What all readers say of a file.

    Args:
        untrained: None if nothing in the rows of the file need train.
    """
    data = path.read_bytes()
    expected = by_library(path, options)
    assert by_terminal(path, options) == expected
    assert by_check(client, data, options) == expected
    uploaded, dataset = by_upload(client, data, options)
    assert uploaded == expected
    assert (dataset is None) == ("details" in expected)
    if not options:
        told = by_dry_run(path, expected.get("kind"), folder)
        assert told == (expected if dataset is None else rows_of(expected)) or told is untrained, "of the file itself"
    if dataset:
        stored = settings.datasets_dir / f"{dataset}.rows"
        kept = by_library(stored, {})
        assert {name: kept[name] for name in COUNTED} == {name: expected[name] for name in COUNTED}
        convert(path, folder / "converted", ReadingOptions(**options))
        assert by_library(folder / "converted", {})["train_rows"] == expected["train_rows"]
        told = by_dry_run(stored, expected["kind"], folder)
        assert told == rows_of(expected) or told is untrained, "of the dataset"
    return expected


def rows_of(expected: dict[str, Any]) -> dict[str, int]:
    return {part: expected[f"{part}_rows"] for part in ("train", "validation")}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[TestClient, Settings]]:
    """One service for all files, on SQLite: no reader knows which database it is."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    with TestClient(create_app(settings, FakeQueue()), BASE_URL, raise_server_exceptions=False) as client:
        yield client, settings


@pytest.mark.parametrize("name", CORPUS)
def test_every_reader_says_the_same_of_a_file(service: tuple[TestClient, Settings], tmp_path: Path, name: str) -> None:
    data, options = CORPUS[name]
    path = tmp_path / "rows"
    path.write_bytes(data)
    agree(*service, path, options, tmp_path)


def test_the_set_of_files_is_broad() -> None:
    assert len(CORPUS) > 200


@pytest.mark.skipif(not CASES, reason="set TAFDIL_TEST_CASES_DIR to a directory with files of rows")
@pytest.mark.parametrize("path", CASES, ids=[str(path.relative_to(PLACE)) for path in CASES])
def test_every_reader_says_the_same_of_a_given_file(
    service: tuple[TestClient, Settings], tmp_path: Path, path: Path
) -> None:
    agree(*service, path, {}, tmp_path, untrained=None)
