"""What the service tells whoever watches it: `/metrics`, and logs as JSON."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from jobs import logs
from jobs.database import Database
from jobs.queue import TaskKind
from jobs.repository import attempts, jobs, tasks
from jobs.states import Cause
from tests.api import client, database, queue, run
from tests.fakes import FakeQueue
from trainer_core.errors import error_dict

__all__ = ["client", "database", "queue"]


def scraped(client: TestClient) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    collector: Any = next(c for c in client.app.state.registry._collector_to_names if hasattr(c, "_numbers"))  # type: ignore[attr-defined]
    collector._numbers = None
    reply = client.get("/metrics")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain")
    samples = [s for family in text_string_to_metric_families(reply.text) for s in family.samples]
    return {(sample.name, *map(str, sample.labels.values())): sample.value for sample in samples}


def test_gauges_follow_the_jobs(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    empty = scraped(client)
    assert empty["tafdil_jobs", "queued"] == empty["tafdil_steps_total",] == 0
    assert not [key for key in empty if key[0] == "tafdil_queue_depth"]
    fence = run(database, client, spec)
    client.post("/v1/jobs", json={**spec, "gpu_class": "a100"})
    client.post("/v1/jobs", json=spec)
    with database.transaction() as session:
        jobs.set_first_step(session, fence, 2)
        jobs.set_progress(session, fence, 7, 10, 1.0, tokens=1234)
        attempts.set_memory(session, fence.job_id, 1, 5 * 10**9)
        tasks.insert(session, TaskKind.MERGE, "default", {}, fence.job_id)
    found = scraped(client)
    assert (found["tafdil_jobs", "queued"], found["tafdil_jobs", "running"]) == (2, 1)
    assert (found["tafdil_queue_depth", "a100"], found["tafdil_queue_depth", "any"]) == (1, 1)
    assert 0 <= found["tafdil_queue_oldest_seconds", "any"] < 60
    assert (found["tafdil_steps_total",], found["tafdil_tokens_total",]) == (5, 1234)
    assert found["tafdil_memory_bytes", "cpu", "worker"] == 5 * 10**9
    assert 0 <= found["tafdil_lease_age_seconds", "cpu", "worker"] < 30
    assert found["tafdil_tasks", "merge", "queued"] == 1
    with database.transaction() as session:
        for lease_s in (-1, 60):
            task = tasks.claim_next(session, [TaskKind.MERGE], lease_s)
            tasks.reap(session, max_losses=3)
        assert task
        tasks.finish(session, task, None, error_dict("timeout", "too long"))
        jobs.finish(session, fence, Cause.FINISH, {"effect": "hardly_changed"})
    ended = scraped(client)
    assert ended["tafdil_attempts_ended_total", "succeeded"] == 1
    assert ended["tafdil_tasks_ended_total", "merge", "lost"] == ended["tafdil_tasks_ended_total", "merge", "timeout"] == 1
    effects = {key[1]: value for key, value in ended.items() if key[0] == "tafdil_jobs_succeeded_total"}
    assert effects == {"changed": 0, "hardly_changed": 1, "collapsed": 0, "unknown": 0}
    assert not [key for key in ended if key[0] == "tafdil_memory_bytes"]
    assert ended["tafdil_steps_total",] == 5
    # A counter that falls looks like one that began again: all of it would count once more.
    assert client.delete(f"/v1/jobs/{fence.job_id}").status_code == 200
    counters = {key: value for key, value in ended.items() if key[0].endswith("_total") and "http" not in key[0]}
    after = scraped(client)
    assert {key: after[key] for key in counters} == counters
    fence = run(database, client, spec)
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {})
    again = scraped(client)
    assert again["tafdil_attempts_ended_total", "succeeded"] == 2
    assert again["tafdil_jobs_succeeded_total", "hardly_changed"] == 1
    assert again["tafdil_jobs_succeeded_total", "unknown"] == 1, "its effect was not measured"


def test_http_is_counted_by_route_not_by_path(client: TestClient, queue: FakeQueue) -> None:
    for number in range(20):
        client.get(f"/v1/jobs/{number:032x}")
        client.get(f"/no/such/{number}")
        client.request(f"FROB{number}", f"/v1/jobs/{number:032x}")
        client.get(f"/v1/jobs/a/artifacts/Za{number}")
    found = scraped(client)
    assert found["tafdil_http_requests_total", "GET", "/v1/jobs/{job_id}", "404"] == 20
    assert found["tafdil_http_requests_total", "other", "other", "404"] >= 20
    names = {key[1:] for key in found if key[0] == "tafdil_http_requests_total"}
    assert len(names) < 8, "labels must be bounded"
    assert found["tafdil_http_request_seconds_count", "GET", "/v1/jobs/{job_id}"] == 20
    queue.is_broken = True
    assert scraped(client)["tafdil_broker_up",] == 0


def test_logs_are_json_with_the_job_they_are_about() -> None:
    code = """
import logging
from jobs import logs
logs.configure()
log = logging.getLogger("worker")
with logs.about(job="abc", attempt=2):
    log.warning("سطر\\n%s", "second")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
logging.getLogger("uvicorn.error").error("from uvicorn")
"""
    environment = {"TAFDIL_LOG_FORMAT": "json", "PATH": ""}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    first, second, third = [json.loads(line) for line in ran.stderr.splitlines()]
    assert (first["message"], first["job"], first["attempt"], first["level"]) == ("سطر\nsecond", "abc", 2, "WARNING")
    assert "job" not in second
    assert "ZeroDivisionError" in second["error"]
    assert third["logger"] == "uvicorn.error"


def test_what_a_line_is_about_ends_with_the_block() -> None:
    formatter = logs.JsonLines()
    record = logging.LogRecord("a", logging.INFO, "", 0, "text", (), None)
    with logs.about(job="a"), logs.about(attempt=1):
        assert json.loads(formatter.format(record))["job"] == "a"
    with pytest.raises(KeyError):
        json.loads(formatter.format(record))["job"]
