"""No path and no address comes from a client: all names, ids and paths, with what leads elsewhere."""

import http.server
import os
import shutil
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.app import create_app
from jobs.places import data_places, find_model
from jobs.settings import Settings
from tests.api import BASE_URL
from tests.conftest import DATA, TINY_MODEL
from tests.fakes import FakeQueue
from trainer_core.errors import DataInvalid, ModelNotFound

CANARY = "canary-of-a-file-outside"
TRAVERSAL = [
    "../secret.jsonl",
    "../../../../../../../../etc/passwd",
    "samples/../../secret.jsonl",
    "samples/./../../secret.jsonl",
    "./../secret.jsonl",
    "..\\secret.jsonl",
    "samples\\..\\..\\secret.jsonl",
    "%2e%2e%2fsecret.jsonl",
    "%252e%252e%252fsecret.jsonl",
    "..%2fsecret.jsonl",
    "..%c0%afsecret.jsonl",
    "....//secret.jsonl",
    "..;/secret.jsonl",
    "samples/pairs_train.jsonl#../../secret.jsonl",
    "samples/pairs_train.jsonl?../../secret.jsonl",
    "samples/pairs_train.jsonl/../../../secret.jsonl",
    "secret.jsonl\x00.jsonl",
    "../secret.jsonl\x00",
    "/etc/passwd",
    "//etc/passwd",
    "{outside}/secret.jsonl",
    "~/secret.jsonl",
    "~root/.bashrc",
    "$HOME/secret.jsonl",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "\\\\host\\share\\secret.jsonl",
    "//host/share/secret.jsonl",
    "C:\\secret.jsonl",
    "C:/secret.jsonl",
    "/proc/self/environ",
    "/dev/stdin",
    "link.jsonl",
    "linked/secret.jsonl",
    "samples/link/secret.jsonl",
    "\u2024\u2024/secret.jsonl",
    "\uff0e\uff0e/secret.jsonl",
    "\uff0e\uff0e\uff0fsecret.jsonl",
    "..\u2215secret.jsonl",
    "..\u2044secret.jsonl",
    "..\u202e/secret.jsonl",
    "../secret.jsonl\n",
    " ../secret.jsonl",
    "tafdil.sqlite3",
    "tafdil.sqlite3-wal",
    "samples/../tafdil.sqlite3",
    "datasets",
    "runs/../datasets/x.rows",
    "logs/api.log",
    "valkey/valkey.conf",
    "cache/x",
    "a/" * 200 + "x",
    "x" * 300,
    "pipe",
    ".",
    "..",
    "*",
    "samples/*.jsonl",
]
ADDRESSES = [
    "{server}/rows.jsonl",
    "http://127.0.0.1:{port}/rows.jsonl",
    "http://localhost:{port}/rows.jsonl",
    "http://[::ffff:127.0.0.1]:{port}/rows.jsonl",
    "http://2130706433:{port}/rows.jsonl",
    "http://0177.0.0.1:{port}/rows.jsonl",
    "http://0x7f.1:{port}/rows.jsonl",
    "http://127.1:{port}/rows.jsonl",
    "https://127.0.0.1:{port}/rows.jsonl",
    "http://user@127.0.0.1:{port}/redirect",
    "http://169.254.169.254/latest/meta-data/",
    "zip://*::http://127.0.0.1:{port}/rows.zip",
    "simplecache::http://127.0.0.1:{port}/rows.jsonl",
    "filecache::file:///etc/passwd",
    "hf://datasets/someone/rows",
    "s3://127.0.0.1:{port}/rows.jsonl",
    "ftp://127.0.0.1:{port}/rows.jsonl",
    "memory://rows.jsonl",
    "data:application/json,[]",
    "//127.0.0.1:{port}/rows.jsonl",
]


class Listener(http.server.BaseHTTPRequestHandler):
    """Notes that it was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Generator[tuple[str, list[str]]]:
    """The address of a server that nobody may ask, and what it was asked."""
    asked: list[str] = []
    handler = type("Handler", (Listener,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data and a models directory with links that lead out of them, and good rows and a model that lie outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    rows = (DATA / "pairs_train.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    text = "\n".join([*rows, rows[0].replace('"prompt": "', f'"prompt": "{CANARY} ')]) + "\n"
    for place in (tmp_path, outside):
        (place / "secret.jsonl").write_text(text, encoding="utf-8")
    shutil.copytree(TINY_MODEL, tmp_path / "secret")
    found = Settings(
        data_dir=tmp_path / "data",
        models_dir=tmp_path / "models",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
    )
    found.make_directories()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "secret")
    (tmp_path / "models" / "org").symlink_to(tmp_path)
    (found.data_dir / "samples").mkdir()
    shutil.copy(DATA / "pairs_train.jsonl", found.data_dir / "samples")
    (found.data_dir / "link.jsonl").symlink_to(outside / "secret.jsonl")
    (found.data_dir / "linked").symlink_to(outside)
    (found.data_dir / "samples" / "link").symlink_to(outside)
    os.mkfifo(found.data_dir / "pipe")
    for place in ("datasets", "runs", "logs", "valkey", "cache"):
        (found.data_dir / place).mkdir(exist_ok=True)
    for place in ("datasets/x.rows", "logs/api.log", "valkey/valkey.conf", "cache/x"):
        (found.data_dir / place).write_text(text, encoding="utf-8")
    return found


@pytest.fixture
def client(settings: Settings) -> Generator[TestClient]:
    with TestClient(create_app(settings, FakeQueue()), BASE_URL, raise_server_exceptions=False) as found:
        yield found


def refused(reply: Any, what: str) -> None:
    assert reply.status_code in (404, 422), (what, reply.status_code, reply.text[:300])
    assert set(reply.json()["error"]) >= {"code", "message", "hint"}, what
    assert CANARY not in reply.text, what
    assert "root:" not in reply.text, what


def filled(text: str, settings: Settings, address: str = "") -> str:
    port = address.rpartition(":")[2]
    outside = str(settings.data_dir.parent / "outside")
    return text.replace("{outside}", outside).replace("{server}", address).replace("{port}", port)


PATH_FIELDS = ("dataset_path", "eval_dataset_path")
NAME_FIELDS = ("model_name", "ref_model_name", "adapter_name")
ID_FIELDS = ("dataset_id", "eval_dataset_id")


@pytest.mark.parametrize("field", [*PATH_FIELDS, *NAME_FIELDS, *ID_FIELDS])
def test_no_field_of_a_job_leads_elsewhere(
    client: TestClient, settings: Settings, spec: dict[str, Any], server: tuple[str, list[str]], field: str
) -> None:
    address, asked = server
    assert client.post("/v1/jobs", json=spec).status_code == 202
    known = client.get("/v1/jobs").json()["jobs"][0]["id"]
    sent = {name: value for name, value in spec.items() if not (field == "dataset_id" and name == "dataset_path")}
    for text in [*TRAVERSAL, *ADDRESSES]:
        value = filled(text, settings, address)
        for method, path, body in (
            ("POST", "/v1/jobs", {**sent, field: value}),
            ("POST", "/v1/jobs/validate", {**sent, field: value}),
            ("POST", f"/v1/jobs/{known}/clone", {field: value}),
        ):
            refused(client.request(method, path, json=body), f"{path} {field}={value!r}")
    assert asked == []
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1
    assert client.get("/readyz").json()["ready"] is True


@pytest.mark.parametrize(
    "name", ["linked", "org/secret", "linked/", "org/../secret", "tafdil/..", "tafdil/tiny-arabic-qwen-2\n"]
)
def test_a_link_below_the_models_is_no_model(
    client: TestClient, settings: Settings, spec: dict[str, Any], name: str
) -> None:
    refused(client.post("/v1/jobs", json={**spec, "model_name": name}), name)
    with pytest.raises(ModelNotFound):
        find_model(settings, name if name.startswith(("linked", "org")) else "../secret")


def test_no_other_body_takes_a_path_or_an_address(
    client: TestClient, settings: Settings, spec: dict[str, Any], server: tuple[str, list[str]]
) -> None:
    address, asked = server
    rows = (settings.data_dir / "samples" / "pairs_train.jsonl").read_bytes()
    dataset = client.post("/v1/datasets", content=rows, params={"name": "../../name"}).json()
    assert {path.name for path in settings.datasets_dir.iterdir()} == {"x.rows", f"{dataset['id']}.rows"}
    job = client.post("/v1/jobs", json=spec).json()["id"]
    for text in [*TRAVERSAL, *ADDRESSES]:
        value = filled(text, settings, address)
        preview = client.post(f"/v1/datasets/{dataset['id']}/preview", json={"model_name": value})
        refused(preview, f"preview {value!r}")
        push = client.post(f"/v1/jobs/{job}/push", json={"name": value})
        assert push.status_code in (409, 422), value
        if push.status_code == 409:
            # A plain name, of a job that is not over.
            assert set(value) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_"), value
    assert asked == []


ROUTES = (
    ("GET", "/v1/jobs/{}"),
    ("GET", "/v1/jobs/{}/logs"),
    ("GET", "/v1/jobs/{}/metadata"),
    ("GET", "/v1/jobs/{}/artifacts"),
    ("DELETE", "/v1/jobs/{}"),
    ("DELETE", "/v1/jobs/{}/artifacts"),
    ("GET", f"/v1/jobs/{'0' * 32}/artifacts/{{}}"),
    ("GET", f"/v1/jobs/{'0' * 32}/comparisons/{{}}"),
    ("GET", "/v1/datasets/{}"),
    ("GET", "/v1/datasets/{}/rows"),
    ("GET", "/v1/datasets/{}/broken"),
    ("GET", "/v1/datasets/{}/report"),
    ("DELETE", "/v1/datasets/{}"),
    ("GET", "/v1/tasks/{}"),
    ("POST", "/v1/tasks/{}/cancel"),
    ("DELETE", "/v1/keys/{}"),
    ("GET", "/v1/jobs?cursor={}"),
    ("GET", "/v1/datasets?cursor={}"),
)


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_no_id_in_a_path_leads_elsewhere(client: TestClient, settings: Settings, method: str, route: str) -> None:
    """As it is and encoded, once and twice. What is left of a path after a client has normalised it is tried as well."""
    before = sorted(str(path) for path in settings.data_dir.parent.rglob("*"))
    for text in TRAVERSAL:
        value = filled(text, settings)
        once = quote(value, safe="")
        for shown in (once, once.replace(".", "%2e"), quote(once, safe=""), quote(value, safe="/.")):
            if shown.strip("/.") == "" or "?" in shown:
                continue
            reply = client.request(method, route.format(shown), follow_redirects=False)
            assert reply.status_code in (307, 404, 405, 422), (shown, reply.status_code)
            assert CANARY not in reply.text
            assert "root:" not in reply.text
    assert sorted(str(path) for path in settings.data_dir.parent.rglob("*")) == before


def test_a_file_that_becomes_a_link_after_the_submit_is_refused_by_the_worker(
    client: TestClient, settings: Settings, spec: dict[str, Any]
) -> None:
    path = settings.data_dir / "mine.jsonl"
    path.write_bytes((settings.data_dir / "samples" / "pairs_train.jsonl").read_bytes())
    job = client.post("/v1/jobs", json={**spec, "dataset_path": "mine.jsonl"}).json()
    assert data_places(settings, job["spec"])["dataset_path"] == str(path.resolve())
    path.unlink()
    path.symlink_to(settings.data_dir.parent / "outside" / "secret.jsonl")
    with pytest.raises(DataInvalid, match="inside the data directory"):
        data_places(settings, job["spec"])
