"""Traces, as a collector receives them: from a request to the phases of its training, whatever becomes of the collector."""

import json
import os
import signal
import sys
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.app import create_app
from jobs import tracing
from jobs.database import Database
from jobs.repository import jobs, tasks
from jobs.settings import Settings
from tafdil import ApiError, Client
from tests.api import BASE_URL, queue
from tests.collector import Collector, Seen
from tests.conftest import DATA
from tests.fakes import FakeQueue
from tests.integration.test_stack import FAST
from tests.integration.test_stack import spec as stack_spec
from tests.live import settings
from tests.rig.stack import ROWS, job_spec
from tests.stack import StackUnderTest, until
from worker.supervisor import Supervisor

__all__ = ["queue", "settings"]

KEY = "an-admin-key-of-more-than-32-letters"
SECRET = "hush-hush-of-the-collector"
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PHASES = ["starting", "preparing", "loading", "training", "evaluating", "saving"]


def variables(collector: Collector) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }


@pytest.fixture(scope="module")
def collector() -> Generator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Generator[Collector]:
    """The collector, with this process as one that traces."""
    for name, value in variables(collector).items():
        monkeypatch.setenv(name, value)
    yield collector
    tracing.close()


@pytest.fixture
def client(
    settings: Settings, queue: FakeQueue, traced: Collector, monkeypatch: pytest.MonkeyPatch
) -> Generator[TestClient]:
    # FastAPI's own traces tell what ours must not; they stay off whatever the environment says.
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    app = create_app(settings.model_copy(update={"admin_key": SecretStr(KEY)}), queue)
    with TestClient(app, BASE_URL, raise_server_exceptions=False, headers={"Authorization": f"Bearer {KEY}"}) as found:
        yield found


@pytest.fixture
def kept(client: TestClient) -> Database:
    return client.app.state.service.database  # type: ignore[attr-defined]


def traceparent_of(database: Database, job_id: str) -> str:
    with database.reading() as session:
        job = jobs.get(session, job_id)
    assert job
    assert job.traceparent
    return job.traceparent


def test_a_request_goes_on_with_the_callers_trace(
    client: TestClient, kept: Database, traced: Collector, spec: dict[str, Any]
) -> None:
    sent = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    reply = client.post("/v1/jobs?said=whispered", json={**spec, "name": "مشروع سري"}, headers=sent)
    assert reply.status_code == 202, reply.text
    (span,) = traced.of_trace(TRACE, "POST /v1/jobs")
    assert (span.parent, span.service, span.is_error) == (CALLER, "tafdil-api", False)
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/jobs",
        "http.response.status_code": 202,
    }
    assert traceparent_of(kept, reply.json()["id"]) == f"00-{TRACE}-{span.id}-01"
    for secret in ("whispered", "مشروع", KEY, SECRET):
        assert not [body for body in traced.bodies if secret.encode() in body], secret
    assert {headers["authorization"] for headers in traced.headers} == {f"Bearer {SECRET}"}


def test_every_request_has_a_span_by_its_route(client: TestClient, traced: Collector) -> None:
    """Also what no route answers, what the gate refuses and what is no trace at all."""
    before = len(traced.spans)
    client.get(f"/v1/jobs/{'a' * 32}", headers={"traceparent": "00-nonsense-01"})
    client.get("/no/such/كتاب")
    client.request("FROB", "/v1/jobs")
    client.get("/v1/jobs", headers={"Authorization": "Bearer wrong"})
    client.get("/healthz", headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    spans: list[Seen] = until(lambda: traced.spans[before:] if len(traced.spans) >= before + 4 else [])
    told = sorted((span.name, span.attributes["http.response.status_code"]) for span in spans)
    assert told == [("GET /v1/jobs/{job_id}", 404), ("HTTP", 401), ("HTTP", 404), ("HTTP /v1/jobs", 405)]
    assert len({span.trace for span in spans}) == 4
    assert not any(span.parent for span in spans)


def test_a_submit_again_is_another_trace_and_a_repeated_one_is_not(
    client: TestClient, kept: Database, spec: dict[str, Any]
) -> None:
    once = {"Idempotency-Key": "k"}
    first = client.post("/v1/jobs", json=spec, headers=once).json()["id"]
    assert client.post("/v1/jobs", json=spec, headers=once).json()["id"] == first
    client.post(f"/v1/jobs/{first}/cancel")
    rerun = client.post(f"/v1/jobs/{first}/rerun").json()["id"]
    clone = client.post(f"/v1/jobs/{first}/clone", json={}).json()["id"]
    assert len({traceparent_of(kept, job_id).split("-")[1] for job_id in (first, rerun, clone)}) == 3
    # A caller who does not record this trace is followed in that.
    unseen = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
    assert traceparent_of(kept, client.post("/v1/jobs", json=spec, headers=unseen).json()["id"]).endswith("-00")
    task_id = client.post("/v1/jobs/validate", json=spec, params={"wait_s": 0}).json()["id"]
    with kept.reading() as session:
        task = tasks.get(session, task_id)
    assert task
    assert task.traceparent


def test_attempts_are_spans_of_one_trace(database: Database, settings: Settings, traced: Collector) -> None:
    """One that is killed, one that succeeds; and of another job one that fails."""
    (settings.data_dir / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    fields = {"tenant": "default", "method": "ipo", "model_name": "m", "spec": {}}
    more = {"dataset_id": None, "eval_dataset_id": None, "eval_dataset_path": None}
    assert tracing.configure("tafdil-train-worker", at_once=True)
    with tracing.span("submit"), database.transaction() as session:
        parent = tracing.current_traceparent()
        trace = tracing.current_trace() or ""
        job_id = jobs.insert(session, {**fields, "resolved_spec": {**job_spec(3), **more}, "traceparent": parent})
        missing = {**job_spec(3), **more, "dataset_path": "gone.jsonl"}
        other_id = jobs.insert(session, {**fields, "resolved_spec": missing, "traceparent": None})
    for trainer in (("/bin/sh", "-c", "kill -9 $$"), (sys.executable, "-m", "tests.rig.trainer"), ("/no/such/program",)):
        runner = Supervisor(database, FakeQueue(), settings, worker="w", is_draining=lambda: False, trainer=trainer)
        assert runner.run_next()
    spans: list[Seen] = until(lambda: found if len(found := traced.of_trace(trace, "attempt")) == 5 else [])
    assert [span.name for span in spans] == ["submit", "queued", "attempt", "queued", "attempt"]
    submit, first_queued, first, second_queued, second = spans
    assert {span.parent for span in spans[1:]} == {submit.id}
    assert first_queued.ended_ns <= first.began_ns
    assert second_queued.began_ns >= first.began_ns
    about = {"tafdil.job.id": job_id, "tafdil.method": "ipo", "tafdil.model": "m"}
    lost = {"tafdil.attempt": 1, "tafdil.outcome": "worker_lost", "error.type": "worker_lost"}
    assert (first.attributes, first.is_error) == ({**about, **lost}, True)
    assert (second.attributes, second.is_error) == ({**about, "tafdil.attempt": 2, "tafdil.outcome": "succeeded"}, False)

    def failed() -> list[Seen]:
        return [span for span in traced.spans if span.name == "attempt" and span.attributes["tafdil.job.id"] == other_id]

    (span,) = until(failed)
    assert (span.trace != trace, span.is_error) == (True, True)
    assert (span.attributes["tafdil.outcome"], span.attributes["error.type"]) == ("failed", "data_invalid")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Generator[StackUnderTest]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**FAST, **variables(collector), "TAFDIL_LOG_FORMAT": "json"}.items():
            patch.setenv(name, value)
        with StackUnderTest(tmp_path_factory.mktemp("traced")) as found:
            yield found


@pytest.fixture
def service(stack: StackUnderTest) -> Generator[Client]:
    with Client(stack.url) as found:
        until(found.ready)
        yield found


def trace_of(stack: StackUnderTest, job_id: str) -> str:
    """The trace of a job."""
    database = Database(f"sqlite:///{stack.data_dir / 'tafdil.sqlite3'}")
    try:
        return traceparent_of(database, job_id).split("-")[1]
    finally:
        database.dispose()


@pytest.fixture(scope="module")
def job_id(stack: StackUnderTest) -> str:
    """A job that has succeeded."""
    rows = (DATA / "pairs_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (stack.data_dir / "few.jsonl").write_text("".join(rows[:16]), encoding="utf-8")
    with Client(stack.url) as client:
        submitted = client.submit(stack_spec(max_steps=4, dataset_path="few.jsonl", eval_dataset_path="few.jsonl"))
        job = client.wait(submitted["id"], 400)
    assert job["state"] == "succeeded"
    return job["id"]


def test_one_trace_leads_from_the_request_to_the_phases(stack: StackUnderTest, job_id: str, collector: Collector) -> None:
    trace = trace_of(stack, job_id)
    spans = collector.of_trace(trace, "POST /v1/jobs", "queued", "attempt", *PHASES)
    (submit,), (queued,), (attempt,) = (
        [span for span in spans if span.name == name] for name in ("POST /v1/jobs", "queued", "attempt")
    )
    assert (submit.service, submit.parent) == ("tafdil-api", "")
    assert (attempt.service, attempt.parent, queued.parent) == ("tafdil-train-worker", submit.id, submit.id)
    assert (attempt.attributes["tafdil.outcome"], attempt.attributes["tafdil.job.id"]) == ("succeeded", job_id)
    assert submit.began_ns <= queued.began_ns <= queued.ended_ns <= attempt.began_ns
    phases = [span for span in spans if span.service == "tafdil-trainer"]
    assert set(PHASES) <= {span.name for span in phases}
    assert {span.parent for span in phases} == {attempt.id}
    assert all(before.ended_ns <= after.began_ns for before, after in pairwise(phases))
    assert attempt.began_ns <= phases[1].began_ns < phases[-1].ended_ns <= attempt.ended_ns
    steps = [span.attributes["tafdil.step"] for span in phases if "tafdil.step" in span.attributes]
    assert max(steps) == 4
    assert max(span.attributes.get("tafdil.tokens", 0) for span in phases) > 0
    lines = [json.loads(line) for line in logged(stack, "train-worker") if job_id in line and '"attempt"' in line]
    assert lines
    assert {line["trace"] for line in lines} == {trace}


def test_a_comparison_has_a_trace(service: Client, job_id: str, collector: Collector) -> None:
    answer = service.compare(job_id, "ما عاصمة مصر؟", max_length=4)
    (compared,) = until(lambda: [span for span in collector.spans if span.name == "POST /v1/jobs/{job_id}/compare"])
    spans = collector.of_trace(compared.trace, "queued", "compare")
    assert [(span.name, span.parent) for span in spans[1:]] == [("queued", compared.id), ("compare", compared.id)]
    assert spans[-1].service == "tafdil-generation-worker"
    assert spans[-1].attributes == {"tafdil.task.id": answer["id"], "tafdil.job.id": job_id, "tafdil.attempt": 1}
    assert not [body for body in collector.bodies if "مصر".encode() in body]


def test_a_process_that_ends_with_its_task_tells_it_first(service: Client, job_id: str, collector: Collector) -> None:
    """The exports worker's. The push is refused, for no hub is configured."""
    with pytest.raises(ApiError, match="no Hugging Face account"):
        service.push(job_id, "name", wait_s=60)
    (span,) = until(lambda: [span for span in collector.spans if span.name == "push"])
    assert (span.service, span.is_error, span.attributes["error.type"]) == ("tafdil-exports-worker", True, "forbidden")


def test_a_training_tells_its_phases_before_it_is_killed(
    service: Client, stack: StackUnderTest, job_id: str, collector: Collector
) -> None:
    killed_id = service.submit(stack_spec(max_steps=5000, dataset_path="few.jsonl"))["id"]
    trace = trace_of(stack, killed_id)
    told = {span.parent for span in collector.of_trace(trace, "starting", "preparing", "loading") if span.name == "loading"}
    os.kill(stack.training_pids()[0], signal.SIGKILL)
    lost = next(span for span in collector.of_trace(trace, "attempt") if span.name == "attempt")
    assert lost.attributes["tafdil.outcome"] == "worker_lost"
    assert told == {lost.id}
    service.cancel(killed_id)
    assert service.wait(killed_id, 400)["state"] == "cancelled"


def test_a_job_succeeds_without_its_collector(
    service: Client, stack: StackUnderTest, job_id: str, collector: Collector
) -> None:
    """It is gone when the attempt begins, and stands still when it ends."""
    with collector.gone():
        new_id = service.submit(stack_spec(max_steps=1, dataset_path="few.jsonl"))["id"]
        until(lambda: [line for line in logged(stack, "train-worker") if "while exporting spans" in line])
    with collector.standing_still():
        assert service.wait(new_id, 400)["state"] == "succeeded"
        assert collector.asked > 0
    assert not [line for line in service.logs(new_id).splitlines() if "export" in line.lower()]


def test_the_collectors_secret_is_kept_nowhere(service: Client, stack: StackUnderTest, collector: Collector) -> None:
    assert any(SECRET in headers["authorization"] for headers in collector.headers)
    for path in stack.data_dir.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def logged(stack: StackUnderTest, name: str) -> list[str]:
    return Path(stack.data_dir / "logs" / f"{name}.log").read_text(encoding="utf-8").splitlines()
