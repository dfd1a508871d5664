"""The client and its async twin against a service that listens, and against networks that fail."""

import asyncio
import hashlib
import inspect
import json
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from pydantic import SecretStr

import tafdil
from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.places import run_dir
from jobs.repository import artifacts, jobs, metrics, tasks
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.spec import SPECS
from jobs.states import Cause, TaskKind
from tafdil import AsyncClient, Client, InvalidRequest, async_client
from tafdil import client as sync_client
from tafdil.calls import Retries, job, rerun, submit
from tafdil.downloads import local_name
from tafdil.models import Artifact, Comparison
from tafdil.text import isolated, visible
from tests import twin
from tests.conftest import DATA
from tests.live import Live, live, serving, settings
from tests.stack import ENOUGH_S, until
from trainer_core.config import METHODS

HOSTILE = "<script>alert(1)</script>\u202eabc\x1b[31mred\x00"


__all__ = ["live", "settings"]


@pytest.fixture
def client(live: Live) -> Generator[Client]:
    with Client(live.url) as found:
        yield found


def claimed(live: Live) -> Fence:
    with live.database.transaction() as session:
        found = jobs.claim_next(session, "worker", 60)
        assert found
        return Fence(found.id, found.attempt, str(found.lease_token))


def finished(live: Live, fence: Fence, cause: Cause = Cause.FINISH, **values: Any) -> None:
    with live.database.transaction() as session:
        jobs.finish(session, fence, cause, {"artifact_path": "x", **values})


def test_the_sync_client_is_made_of_the_async_one() -> None:
    written = (twin.FOLDER / "client.py").read_text(encoding="utf-8")
    assert written == twin.sync_of((twin.FOLDER / "async_client.py").read_text(encoding="utf-8")), "python -m tests.twin"
    for one, other in ((Client, AsyncClient), (tafdil.Job, tafdil.AsyncJob)):
        names = {name for name, _ in inspect.getmembers(one, inspect.isfunction) if not name.startswith("_")}
        assert names == {name for name, _ in inspect.getmembers(other, inspect.isfunction) if not name.startswith("_")}
        for name in names:
            signatures = (inspect.signature(getattr(kind, name)).parameters for kind in (one, other))
            assert next(signatures).keys() == next(signatures).keys()
    assert sync_client.Client is Client
    assert async_client.AsyncClient is AsyncClient


def test_a_client_asks_for_its_language(live: Live, spec: dict[str, Any]) -> None:
    with Client(live.url, language="ar") as client:
        with pytest.raises(tafdil.ApiError) as refused:
            client.job("abc")
        events = client.events(client.submit(spec).id)
        queued = next(events)
        events.close()
    said = refused.value
    assert (said.status, said.code, said.message_code, said.params) == (404, "not_found", "not_found.job", {"id": "abc"})
    assert said.message.startswith("لا توجد مهمة")
    assert (queued.data["message"], queued.data["message_code"]) == ("دخلت الطابور", "event.queued")


def test_a_job_from_submit_to_its_end(client: Client, live: Live, spec: dict[str, Any], tmp_path: Path) -> None:
    job = client.submit({**spec, "name": "تجربة"})
    assert (job.state, job.queue_position, job["name"], job.get("nothing", 1)) == ("queued", 1, "تجربة", 1)
    assert job.describe() == "queued, number 1"
    with pytest.raises(KeyError):
        job["nothing"]
    assert [one.id for one in client.jobs()] == [job.id]
    assert [one.id for one in client.jobs(limit=1, state="queued", method="ipo")] == [job.id]
    fence = claimed(live)
    with live.database.transaction() as session:
        metrics.add(session, job.id, 1, 1, {"loss": 0.5, "kl": None})
        jobs.set_progress(session, fence, 2, 4, 3.0)
        jobs.add_warning(session, fence, {"code": "x", "message": "careful"})
    assert job.refresh().describe() == "preparing, step 2 of 4"
    assert job.metrics()["loss"] == [{"attempt": 1, "step": 1, "value": 0.5}]
    assert job.metrics(["kl"], only_current=True) == {"kl": [{"attempt": 1, "step": 1, "value": None}]}
    assert [one.number for one in job.attempts()] == [1]
    assert job.pause().requested == "pause"
    timer = threading.Timer(0.4, finished, (live, fence))
    timer.start()
    states = [one.state for one in job.watch(0.1)]
    assert states[0] == "running"
    assert states[-1] == "succeeded"
    assert job.wait(check=True).is_over
    assert job.refresh() == job.wait()
    assert [event.event for event in job.events()][-1] == "succeeded"
    asked = job.compare("سؤال", wait_s=0)
    assert (asked.state, asked.result) == ("queued", None)
    assert [one.id for one in client.comparisons(job.id)] == [asked.id]
    assert client.comparison(job.id, asked.id) == asked
    assert job.clone(learning_rate=1e-4).spec["learning_rate"] == 1e-4
    assert job.rerun().rerun_of == job.id
    assert job.metadata()["job_id"] == job.id
    assert job.logs() == ""
    assert client.delete_job(job.id).freed_bytes == 0
    with pytest.raises(tafdil.NotFound) as gone:
        job.refresh()
    assert (gone.value.status, gone.value.code, gone.value.user_fault) == (404, "not_found", True)
    timer.join()


def test_errors_are_a_tree(client: Client, live: Live, spec: dict[str, Any]) -> None:
    with pytest.raises(tafdil.InvalidRequest) as refused:
        client.submit({**spec, "beta": -1})
    assert refused.value.details[0]["field"] == "beta"
    assert refused.value.hint
    job = client.submit(spec)
    with pytest.raises(tafdil.Conflict):
        client.resume(job.id)
    with pytest.raises(tafdil.WaitTimeout) as late:
        client.wait(job.id, timeout_s=0.1, every_s=0.05)
    assert isinstance(late.value, TimeoutError)
    client.cancel(job.id)
    with pytest.raises(tafdil.JobFailed) as failed:
        job.wait(check=True)
    assert failed.value.job.state == "cancelled"
    with pytest.raises(tafdil.Unreachable, match="no response from"), Client("http://127.0.0.1:9", retries=0) as nobody:
        nobody.job(job.id)
    for kind in (tafdil.InvalidRequest, tafdil.Conflict, tafdil.RateLimited, tafdil.ServerError):
        assert issubclass(kind, tafdil.ApiError)
    assert issubclass(tafdil.ApiError, tafdil.TafdilClientError)


def test_the_twin_awaits_the_same(live: Live, spec: dict[str, Any]) -> None:
    async def walk() -> None:
        async with AsyncClient(live.url) as client:
            job = await client.submit(spec)
            assert [one.id async for one in client.jobs()] == [job.id]
            fence = claimed(live)
            asyncio.get_running_loop().call_later(0.3, finished, live, fence)
            states = [one.state async for one in job.watch(0.1)]
            assert states[-1] == "succeeded"
            assert [event.event async for event in job.events()][-1] == "succeeded"
            dataset = await client.upload_dataset(DATA / "pairs_train.jsonl")
            assert (await client.rows(dataset.id, 2, 1))[0]["row"] == 2
            assert [one.id async for one in client.datasets()] == [dataset.id]
            with pytest.raises(tafdil.NotFound):
                await client.job("0" * 32)
            assert await client.ready()
            assert (await client.readiness())["ready"]

    asyncio.run(walk())


def test_methods_are_listed(client: Client) -> None:
    found = {each.name: each for each in client.methods()}
    assert tuple(found) == METHODS
    for method in found.values():
        fields = {field.name: field for field in method.fields}
        assert set(fields) == set(SPECS[method.name].model_fields)
        assert not {name for field in method.fields for name in field.model_extra or {}}, "the client's model lacks fields"
        assert fields["beta"].describe().startswith("number, > 0, ≤ ")
        assert fields["eval_steps"].describe() == "integer or number or epoch, > 0, steps"
        assert fields["max_steps"].describe() == "integer or null, ≥ 1, steps"
        assert fields["beta"].label["ar"] != fields["beta"].label["en"]


def test_a_table_is_read_as_a_person_says(client: Client, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b,c\nس,نعم,لا\nس,,\n", encoding="utf-8")
    with pytest.raises(InvalidRequest) as raised:
        client.upload_dataset(table)
    assert raised.value.code == "data_unclear"
    assert raised.value.question
    assert (raised.value.question["about"], raised.value.question["choices"]) == ("map", ["a", "b", "c"])
    columns = {"prompt": "a", "chosen": "b", "rejected": "c"}
    checked = client.check_dataset(table, map=columns)
    assert (checked.valid, checked.error_count, checked.rows[0]["chosen"]) == (False, 1, "نعم")
    dataset = client.upload_dataset(table, map=columns, on_invalid="skip")
    assert (dataset.mapping, dataset.skipped_rows, dataset.file_kind) == (columns, 1, "csv")
    assert client.broken_rows(dataset.id).startswith(b"\xef\xbb\xbfline,problem,")


def test_keys_are_sent_and_made(settings: Settings, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    admin_key = "an-admin-key-of-more-than-32-letters"
    with serving(settings.model_copy(update={"admin_key": SecretStr(admin_key)})) as live:
        with Client(live.url) as nobody, pytest.raises(tafdil.Unauthorized):
            nobody.submit(spec)
        with Client(live.url, key=admin_key) as admin:
            key = admin.create_key(tenant="team", scopes=["read"])
            assert [one.id for one in admin.keys()] == [key.id]  # noqa: SIM118  # no dictionary
            monkeypatch.setenv("TAFDIL_API_KEY", str(key.key))
            monkeypatch.setenv("TAFDIL_URL", live.url)
            with Client() as reader:
                assert reader.session()["tenant"] == "team"
                assert list(reader.jobs()) == []
                with pytest.raises(tafdil.Forbidden):
                    reader.submit(spec)
            assert admin.revoke_key(key.id).revoked_at


# -- what is sent again


class Flaky(BaseHTTPRequestHandler):
    """Fails as told, then answers with a job. Notes what it was asked."""

    failures: ClassVar[list[Any]] = []
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.headers.get("Idempotency-Key")))
        failure = self.failures.pop(0) if self.failures else None
        if failure == "drop":
            self.close_connection = True
            self.connection.close()
            return
        status, headers = failure or (200, {})
        error = {"error": {"code": "internal", "message": "no"}}
        fields = {
            "id": "a" * 32,
            "method": "ipo",
            "model_name": "m",
            "state": "queued",
            "created_at": "2026-01-01T00:00:00Z",
        }
        data = json.dumps(error if status >= 400 else fields).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815


@pytest.fixture
def flaky() -> Generator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Flaky.failures.clear()
    Flaky.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("ask", "failures", "has_key"),
    [
        (lambda c: c.job("x"), ["drop", (503, {})], False),
        (lambda c: c.submit({}), ["drop"], True),
        (lambda c: c.rerun("x"), [(502, {})], True),
        (lambda c: c.cancel("x"), [(429, {"Retry-After": "0.01"})], False),
    ],
)
def test_what_cannot_be_done_twice_is_sent_again(
    flaky: str, ask: Callable[[Client], Any], failures: list[Any], has_key: bool
) -> None:
    Flaky.failures += failures
    with Client(flaky) as client:
        assert ask(client).state == "queued"
    assert len(Flaky.asked) == len(failures) + 1
    assert len(set(Flaky.asked)) == 1, "each time with the same key"
    assert (Flaky.asked[0][1] is not None) == has_key


@pytest.mark.parametrize(
    ("ask", "failure", "kind"),
    [
        (lambda c: c.cancel("x"), "drop", tafdil.Unreachable),
        (lambda c: c.pause("x"), (503, {}), tafdil.ServerError),
        (lambda c: c.delete_job("x"), "drop", tafdil.Unreachable),
        (lambda c: c.compare("x", "س"), (504, {}), tafdil.ServerError),
        (lambda c: c.merge("x"), "drop", tafdil.Unreachable),
        (lambda c: c.push("x", "m"), (502, {}), tafdil.ServerError),
        (lambda c: c.job("x"), (302, {"Location": "https://elsewhere.example"}), tafdil.Unreachable),
        (lambda c: c.submit({}), (500, {}), tafdil.ServerError),
        (lambda c: c.submit({}), (429, {"Retry-After": "3600"}), tafdil.RateLimited),
    ],
)
def test_what_may_have_been_done_is_not(flaky: str, ask: Callable[[Client], Any], failure: Any, kind: Any) -> None:
    Flaky.failures += [failure] * 5
    with Client(flaky) as client, pytest.raises(kind) as raised:
        ask(client)
    assert len(Flaky.asked) == 1
    if kind is tafdil.RateLimited:
        assert raised.value.retry_after_s == 3600


def test_retries_end(flaky: str) -> None:
    Flaky.failures += ["drop"] * 20
    with Client(flaky, retries=2) as client, pytest.raises(tafdil.Unreachable):
        client.job("x")
    assert len(Flaky.asked) == 3
    waits = [Retries(99).delay_s(job("x"), tried, httpx.ReadError("")) or 0 for tried in range(20)]
    assert max(waits) <= 10
    assert sum(waits[:5]) < sum(waits[5:10])
    assert submit({}, None).headers != submit({}, None).headers
    assert rerun("x", False, "k").headers == {"Idempotency-Key": "k"}


# -- downloads


def artifact(client: Client, live: Live, spec: dict[str, Any], data: bytes, sha256: str | None = None) -> str:
    """A job whose one file holds the data; returns its id."""
    job = client.submit(spec)
    fence = claimed(live)
    path = run_dir(live.settings, job.id) / "attempt-1/output/model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    name = "attempt-1/output/model.safetensors"
    told = ArtifactFile(ArtifactKind.MODEL, name, len(data), sha256 or hashlib.sha256(data).hexdigest())
    with live.database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": "x"})
        artifacts.keep(session, "default", job.id, [told], [1])
    return job.id


@pytest.mark.parametrize("size", [0, 10, 3 * 2**20 + 7])
def test_a_download_goes_on_where_it_stood(
    client: Client, live: Live, spec: dict[str, Any], tmp_path: Path, size: int
) -> None:
    data = bytes(i % 251 for i in range(size))
    job_id = artifact(client, live, spec, data)
    digest = hashlib.sha256(data).hexdigest()
    for begun in (0, size // 2, size):
        folder = tmp_path / str(begun)
        folder.mkdir(exist_ok=True)
        (folder / f"model.safetensors.{digest[:16]}.part").write_bytes(data[:begun])
        (saved,) = client.download(job_id, folder)
        assert saved.read_bytes() == data
        assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_a_damaged_download_is_said_and_begun_anew(client: Client, live: Live, spec: dict[str, Any], tmp_path: Path) -> None:
    data = b"0123456789" * 100
    job_id = artifact(client, live, spec, data)
    part = tmp_path / f"model.safetensors.{hashlib.sha256(data).hexdigest()[:16]}.part"
    part.write_bytes(b"X" * 500)
    with pytest.raises(tafdil.DamagedDownload, match="not what the service says"):
        client.download(job_id, tmp_path)
    assert list(tmp_path.glob("model*")) == []
    assert client.download(job_id, tmp_path)[0].read_bytes() == data


@pytest.mark.parametrize(
    ("kind", "name", "local"),
    [
        ("model", "attempt-1/output/ref/adapter.safetensors", "ref/adapter.safetensors"),
        ("checkpoint", "attempt-2/output/checkpoint-4/optimizer.pt", "checkpoint-4/optimizer.pt"),
        ("merged", "merged-1/model.safetensors", "merged-1/model.safetensors"),
        ("log", "attempt-1/log.txt", "attempt-1/log.txt"),
        ("model", "../../../etc/passwd", "passwd"),
        ("model", "/attempt-1/output/../../x", "x"),
        ("model", "a\\..\\..\\b", "b"),
        ("log", "x", "x"),
    ],
)
def test_a_file_is_never_saved_elsewhere(kind: str, name: str, local: str) -> None:
    fields = {"id": "1", "size_bytes": 1, "sha256": "0", "href": "/", "created_at": "2026-01-01T00:00:00Z"}
    assert local_name(Artifact.model_validate({**fields, "kind": kind, "name": name})) == local


# -- streams


class Broken(BaseHTTPRequestHandler):
    """Sends one event beyond the last one seen, and breaks off; after three it ends the stream."""

    seen: ClassVar[list[str]] = []

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        last = self.headers["Last-Event-ID"]
        self.seen.append(last)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        # A length that is never reached: the client notices that the stream broke.
        self.send_header("Content-Length", "100000" if int(last) < 3 else "0")
        self.end_headers()
        if int(last) < 3:
            self.wfile.write(f': ping\n\nid: {int(last) + 1}\nevent: phase\ndata: {{"n": "{last}"}}\n\n'.encode())


def test_a_broken_stream_is_taken_up_where_it_was() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Broken.seen.clear()
    with Client(f"http://127.0.0.1:{server.server_port}") as client:
        found = list(client.events("x"))
    server.shutdown()
    server.server_close()
    assert [(event.id, event.event, event.data) for event in found] == [
        (number + 1, "phase", {"n": str(number)}) for number in range(3)
    ]
    assert Broken.seen == ["0", "1", "2", "3"]
    with Client(f"http://127.0.0.1:{server.server_port}", retries=1) as client, pytest.raises(tafdil.Unreachable):
        list(client.events("x"))


def test_a_comparison_is_told_while_it_grows(client: Client, live: Live, spec: dict[str, Any]) -> None:
    job = client.submit(spec)
    finished(live, claimed(live))
    text = "نص\u2028كامل\x85\u2029"
    is_seen = threading.Event()

    def claim() -> Any:
        with live.database.transaction() as session:
            task = tasks.claim_next(session, [TaskKind.COMPARE], 60)
            if task:
                tasks.tell(session, task, {"trained_model_response": "نص", "reference_model_response": ""})
            return task

    def answer() -> None:
        task = until(claim)
        is_seen.wait(ENOUGH_S)
        with live.database.transaction() as session:
            tasks.finish(session, task, {"trained_model_response": text, "reference_model_response": "آخر"})

    thread = threading.Thread(target=answer)
    thread.start()
    events = []
    for event in client.compare_events(job.id, "سؤال"):
        events.append(event)
        is_seen.set()
    thread.join()
    assert [event.event for event in events] == ["partial", "result"]
    assert events[1].data["result"]["trained_model_response"] == text


# -- what people see


def test_a_notebook_shows_text_and_runs_none_of_it(client: Client, spec: dict[str, Any]) -> None:
    job = client.submit({**spec, "name": HOSTILE.replace("\x00", "")})
    shown = job._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "\\u202e" in shown
    assert "\x1b" not in shown
    assert 'dir="auto"' in shown
    assert "<progress" in shown
    effect = job.model_copy(update={"state": "succeeded", "effect": "collapsed"})._repr_html_()
    assert "the model broke" in effect
    assert "the model broke" not in shown
    result = {"trained_model_response": HOSTILE, "reference_model_response": "ب"}
    fields = {"id": "1", "job_id": "2", "state": "succeeded", "created_at": "2026-01-01T00:00:00Z"}
    answer = Comparison.model_validate({**fields, "request": {"prompt": "<b>"}, "result": result})._repr_html_()
    assert "<script>" not in answer
    assert "&lt;b&gt;" in answer


def test_hostile_text_is_shown_not_obeyed() -> None:
    assert visible("a\x1b[2Jb\x1b]0;title\x07c\x1b]8;;http://x\x1b\\d") == "abcd"
    assert visible("\u202e\u2066\u200f\x07\x9b\ufeff\U000e0041") == ("\\u202e\\u2066\\u200f\\u0007\\u009b\\ufeff\\U000e0041")
    assert visible("مرحبا\nسطر\tثان") == "مرحبا\nسطر\tثان"
    assert visible("آية \u06dd") == "آية \u06dd"
    assert visible("می\u200cخواهم 👨\u200d👩") == "می\u200cخواهم 👨\u200d👩"
    assert isolated("عربي\n\nabc 123") == "\u2068عربي\u2069\n\nabc 123"
    assert isolated("xא\u2069y") == "\u2068xא\\u2069y\u2069"
