"""What an upload says of how its file was read, the rows that it leaves out, and a check that stores nothing."""

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs import retention, uploads
from jobs.settings import Settings
from jobs.uploads import DatasetUpload
from tests.api import BASE_URL, client, database, error_of, queue
from tests.conftest import DATA

__all__ = ["client", "database", "queue"]

READING = ("file_kind", "encoding", "layout", "mapping", "unused", "skipped_rows")


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def pair(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "نعم.", "rejected": "لا.", **more}


SOME_BROKEN = lines(pair("ما عكس كبير؟"), {"prompt": "=1+1", "chosen": 7, "note": "@x"}, pair("ما عاصمة مصر؟"))


def test_a_file_in_our_form_is_kept_as_it_came(client: TestClient, settings: Settings) -> None:
    body = (DATA / "pairs_train.jsonl").read_bytes()
    dataset = client.post("/v1/datasets", content=body).json()
    assert (settings.datasets_dir / f"{dataset['id']}.rows").read_bytes() == body
    assert dataset["sha256"] == dataset["source_sha256"] == hashlib.sha256(body).hexdigest()
    assert (dataset["file_kind"], dataset["skipped_rows"], dataset["options"]) == ("jsonl", 0, {})


def test_broken_rows_stay_out_and_can_be_downloaded(client: TestClient, settings: Settings) -> None:
    error_of(client.post("/v1/datasets", content=SOME_BROKEN), 422, "data_invalid")
    dataset = client.post("/v1/datasets", content=SOME_BROKEN, params={"on_invalid": "skip"}).json()
    assert (dataset["train_rows"], dataset["skipped_rows"]) == (2, 1)
    assert dataset["options"] == {"on_invalid": "skip"}
    rows = client.get(f"/v1/datasets/{dataset['id']}/rows").json()["rows"]
    assert [(row["row"], row["prompt"]) for row in rows] == [(1, "ما عكس كبير؟"), (3, "ما عاصمة مصر؟")]
    reply = client.get(f"/v1/datasets/{dataset['id']}/broken")
    assert reply.headers["content-type"] == "text/csv; charset=utf-8"
    assert reply.content.startswith(b"\xef\xbb\xbf"), "Excel knows UTF-8 by this mark"
    header, row = csv.reader(io.StringIO(reply.content.decode("utf-8-sig")))
    assert header == ["line", "problem", "prompt", "chosen", "note"]
    assert (row[0], row[2:]) == ("2", ["'=1+1", "7", "'@x"]), "no cell is a formula"
    assert "rejected" in row[1]
    kept = {path.name: path for path in settings.datasets_dir.iterdir()}
    assert set(kept) == {f"{dataset['id']}.rows", f"{dataset['id']}.broken.csv"}
    assert sum(path.stat().st_size for path in kept.values()) == dataset["size_bytes"]
    stored = kept[f"{dataset['id']}.rows"].read_bytes()
    assert hashlib.sha256(stored).hexdigest() == dataset["sha256"] != dataset["source_sha256"]
    assert client.delete(f"/v1/datasets/{dataset['id']}").json()["freed_bytes"] == dataset["size_bytes"]
    assert not list(settings.datasets_dir.iterdir())


TABLE = "م,السؤال,نص أ,نص ب\n1,ما عاصمة مصر؟,القاهرة.,لا أدري.\n2,ما عكس كبير؟,صغير.,اسأل غيري.\n"
MAP = ["prompt:السؤال", "chosen:نص أ", "rejected:نص ب"]


def test_a_table_is_converted_once(client: TestClient, settings: Settings, spec: dict[str, Any]) -> None:
    reply = client.post("/v1/datasets", content=TABLE.encode(), params={"map": MAP})
    assert reply.status_code == 201, reply.text
    dataset = reply.json()
    expected = {"file_kind": "csv", "encoding": None, "layout": "map", "unused": ["م"], "skipped_rows": 0}
    assert {name: dataset[name] for name in expected} == expected
    assert dataset["mapping"] == {"prompt": "السؤال", "chosen": "نص أ", "rejected": "نص ب"}
    assert (dataset["format"], dataset["kind"], dataset["train_rows"]) == ("jsonl", "pairs", 2)
    stored = (settings.datasets_dir / f"{dataset['id']}.rows").read_bytes()
    assert (len(stored), hashlib.sha256(stored).hexdigest()) == (dataset["size_bytes"], dataset["sha256"])
    assert dataset["source_sha256"] == hashlib.sha256(TABLE.encode()).hexdigest()
    rows = client.get(f"/v1/datasets/{dataset['id']}/rows").json()["rows"]
    assert [(row["row"], row["prompt"], row["chosen"]) for row in rows] == [
        (2, "ما عاصمة مصر؟", "القاهرة."),
        (3, "ما عكس كبير؟", "صغير."),
    ]
    job = {**spec, "dataset_path": None, "dataset_id": dataset["id"]}
    assert client.post("/v1/jobs", json=job).status_code == 202
    assert [path.name for path in settings.datasets_dir.iterdir()] == [f"{dataset['id']}.rows"]


def test_what_a_file_leaves_open_is_asked(client: TestClient, settings: Settings) -> None:
    error = error_of(client.post("/v1/datasets", content=TABLE.encode()), 422, "data_unclear")
    assert error["question"]["about"] == "map"
    assert error["question"]["choices"] == ["م", "السؤال", "نص أ", "نص ب"]
    arabic = TABLE.encode("cp1256")
    error = error_of(client.post("/v1/datasets", content=arabic), 422, "data_unclear")
    assert (error["question"]["about"], error["question"]["guess"]) == ("encoding", "cp1256")
    scored = lines(*({"question": f"س{n}", "answer": f"ج{n}", "rating": n} for n in range(1, 6)))
    error = error_of(client.post("/v1/datasets", content=scored), 422, "data_unclear")
    assert (error["question"]["about"], error["question"]["choices"]) == ("threshold", ["rating"])
    checked = client.post("/v1/datasets/check", content=arabic, params={"encoding": "cp1256", "map": MAP}).json()
    assert (checked["valid"], checked["converted"], checked["encoding"]) == (True, True, "cp1256")
    assert set(checked["columns"]) == {"م", "السؤال", "نص أ", "نص ب"}
    assert checked["rows"][0]["prompt"] == "ما عاصمة مصر؟"
    open_ = client.post("/v1/datasets/check", content=TABLE.encode()).json()
    assert (open_["valid"], open_["error"]["code"], open_["columns"]) == (
        False,
        "data_unclear",
        ["م", "السؤال", "نص أ", "نص ب"],
    )
    assert not list(settings.datasets_dir.iterdir())
    good = client.post("/v1/datasets", content=scored, params={"threshold": "3"}).json()
    assert (good["kind"], good["desirable_rows"]) == ("kto", 3)


def test_a_file_with_a_validation_part_keeps_it(client: TestClient) -> None:
    parts = {"train": [pair("س1") | {"label": None}], "validation": [pair("س2"), pair("س3")]}
    body = json.dumps(parts).replace('"prompt"', '"question"').encode()
    dataset = client.post(
        "/v1/datasets", content=body, params={"map": ["prompt:question", "chosen:chosen", "rejected:rejected"]}
    )
    assert dataset.status_code == 201, dataset.text
    assert {name: dataset.json()[name] for name in ("format", "train_rows", "validation_rows")} == {
        "format": "json",
        "train_rows": 1,
        "validation_rows": 2,
    }


def test_a_dataset_without_broken_rows_has_no_table_of_them(client: TestClient) -> None:
    dataset = client.post("/v1/datasets", content=lines(pair("س")), params={"on_invalid": "skip"}).json()
    error_of(client.get(f"/v1/datasets/{dataset['id']}/broken"), 404, "not_found")


def test_a_check_reports_and_stores_nothing(client: TestClient, settings: Settings) -> None:
    body = lines(*(pair(f"س{number}") for number in range(12)))
    found = client.post("/v1/datasets/check", content=body).json()
    assert (found["valid"], found["error"], found["kind"], found["train_rows"]) == (True, None, "pairs", 12)
    assert [row["prompt"] for row in found["rows"]] == [f"س{number}" for number in range(10)]
    broken = client.post("/v1/datasets/check", content=SOME_BROKEN).json()
    assert broken["valid"] is False
    assert (broken["error"]["code"], broken["error"]["details"][0]["line"]) == ("data_invalid", 2)
    assert client.post("/v1/datasets/check", content=SOME_BROKEN, params={"on_invalid": "skip"}).json()["valid"] is True
    garbage = client.post("/v1/datasets/check", content=b"{" * 100).json()
    assert (garbage["valid"], garbage["rows"]) == (False, [])
    error_of(client.post("/v1/datasets/check", content=body * 10_000), 413, "too_large")
    assert client.get("/v1/datasets").json()["datasets"] == []
    assert not list(settings.datasets_dir.iterdir())


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("map=prompt", "map"),
        ("map=prompt:a&map=prompt:b", "map"),
        ("map=prompt:%00", "map"),
        ("threshold=nan", "threshold"),
        ("threshold=much", "threshold"),
        ("on_invalid=guess", "on_invalid"),
        ("encoding=", "encoding"),
    ],
)
def test_what_is_said_of_the_file_is_checked(client: TestClient, query: str, field: str) -> None:
    for path in ("/v1/datasets", "/v1/datasets/check"):
        error = error_of(client.post(f"{path}?{query}", content=lines(pair("س"))), 422, "spec_invalid")
        assert error["details"][0]["field"].removeprefix("query.") == field


def test_a_conversion_that_fails_leaves_nothing(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, options: Any) -> None:
        target.write_bytes(b"half a ro")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.uploads.convert", full)
    error_of(client.post("/v1/datasets", content=SOME_BROKEN, params={"on_invalid": "skip"}), 500, "internal")
    assert not list(settings.datasets_dir.iterdir())
    assert client.get("/v1/datasets").json()["datasets"] == []


def test_a_dataset_that_is_not_stored_leaves_no_file(settings: Settings) -> None:
    from trainer_core.reading_options import ReadingOptions

    def refuse(_: dict[str, Any]) -> Any:
        raise RuntimeError("no commit today")

    settings.make_directories()
    upload = DatasetUpload(settings, None, refuse, ReadingOptions(on_invalid="skip"))  # type: ignore[call-arg]
    upload.write(SOME_BROKEN)
    with pytest.raises(RuntimeError):
        upload.finish()
    upload.abort()
    assert not list(settings.datasets_dir.iterdir())


def test_datasets_of_earlier_versions_say_nothing_of_their_reading(client: TestClient, database: Any) -> None:
    from jobs.records import DatasetRecord

    dataset = client.post("/v1/datasets", content=lines(pair("س"))).json()
    with database.transaction() as session:
        session.query(DatasetRecord).update({"reading": None})
    shown = client.get(f"/v1/datasets/{dataset['id']}").json()
    assert {name: shown[name] for name in READING} == dict.fromkeys(READING)
    error_of(client.get(f"/v1/datasets/{dataset['id']}/broken"), 404, "not_found")


def test_uploads_are_counted_by_kind_and_by_refusal(client: TestClient) -> None:
    client.post("/v1/datasets", content=lines(pair("س")))
    client.post("/v1/datasets", content=b"[]")
    page = client.get("/metrics").text
    assert 'tafdil_datasets_uploaded_total{file_kind="jsonl"} 1.0' in page
    assert 'tafdil_datasets_refused_total{code="data_invalid"} 1.0' in page


@pytest.mark.parametrize("on_invalid", ["refuse", "skip"])
def test_a_packed_file_fills_no_disk(client: TestClient, settings: Settings, on_invalid: str) -> None:
    """Neither its rows nor those that are left out may be larger than an upload."""
    settings.max_upload_bytes = 20_000
    row = {"question": "س", "good": "نعم", "bad": "لا"} if on_invalid == "refuse" else {"prompt": "س", "chosen": 7}
    body = gzip.compress(lines(pair("س"), row) if on_invalid == "skip" else lines(row) * 2) + gzip.compress(
        lines(row) * 2000
    )
    assert len(body) < settings.max_upload_bytes
    error_of(client.post("/v1/datasets", content=body, params={"on_invalid": on_invalid}), 413, "too_large")
    assert not list(settings.datasets_dir.iterdir())


def test_a_mended_table_of_broken_rows_is_as_it_was(client: TestClient) -> None:
    """The apostrophes that keep its cells from being formulas are none of the rows'."""
    bullets, quoted = "- أولا\n- ثانيا", "'-quoted"
    params = {"on_invalid": "skip"}
    body = lines(pair("س"), {"prompt": bullets, "chosen": quoted, "rejected": None})
    dataset = client.post("/v1/datasets", content=body, params=params).json()
    table = client.get(f"/v1/datasets/{dataset['id']}/broken").content.decode("utf-8-sig")
    header, row = csv.reader(io.StringIO(table))
    assert row[2:4] == [f"'{bullets}", f"'{quoted}"]
    out = io.StringIO()
    csv.writer(out).writerows([header, [*row[:4], "=لا"]])
    mended = client.post("/v1/datasets", content=out.getvalue().encode("utf-8-sig")).json()
    (found,) = client.get(f"/v1/datasets/{mended['id']}/rows").json()["rows"]
    assert (found["prompt"], found["chosen"], found["rejected"]) == (bullets, quoted, "=لا")


def test_an_upload_that_a_full_disk_ends_leaves_nothing(settings: Settings) -> None:
    full = """
import resource, signal, sys
from pathlib import Path
from jobs.settings import Settings
from jobs.uploads import DatasetUpload
from trainer_core.reading_options import ReadingOptions

settings = Settings(data_dir=Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
good, bad = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\\n', b'{"prompt": 1}\\n'
for body in (good * 40, good + bad * 200):
    upload = DatasetUpload(settings, None, sys.exit, ReadingOptions(on_invalid="skip"))
    try:
        upload.write(body)
        upload.finish()
    except OSError:
        upload.abort()
    else:
        sys.exit("it was stored")
"""
    assert subprocess.run([sys.executable, "-c", full, str(settings.data_dir)], check=False, timeout=300).returncode == 0
    assert not list(settings.datasets_dir.iterdir())


def test_parts_of_killed_uploads_are_swept_after_a_day(settings: Settings, database: Any, queue: Any) -> None:
    """An API process that is killed in an upload leaves a part. The next start deletes it once it is a day old."""
    kill = """
import os, sys
from pathlib import Path
from jobs.settings import Settings
from jobs.uploads import DatasetUpload
from trainer_core.reading_options import ReadingOptions

upload = DatasetUpload(Settings(data_dir=Path(sys.argv[1])), None, sys.exit, ReadingOptions(on_invalid="skip"))
upload.write(b'{"prompt": 1}\\n' * 20_000)
upload._file.flush()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", kill, str(settings.data_dir)], check=False, timeout=300)
    old = [path for path in settings.datasets_dir.iterdir() if path.suffix == ".part"]
    assert len(old) == 2, "the file and its skipped rows"
    upload = DatasetUpload(settings, None, lambda _: None)  # type: ignore[arg-type]
    rows = settings.datasets_dir / "0a.rows"
    rows.write_bytes(b"x")
    assert uploads.sweep(settings) == 0, "none is a day old"
    size_bytes = sum(path.stat().st_size for path in old)
    assert size_bytes > 0
    for path in (*old, rows):
        os.utime(path, (time.time() - 90_000,) * 2)
    assert retention.apply(database, queue, settings) == size_bytes
    assert set(settings.datasets_dir.iterdir()) == {upload._path, rows}
    os.utime(upload._path, (time.time() - 90_000,) * 2)
    with TestClient(create_app(settings, queue), BASE_URL):
        assert list(settings.datasets_dir.iterdir()) == [rows]
    upload.abort()
