"""Parts of what a job left behind: events without some types, a stretch of the curves, the end of a log."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.database import Database
from jobs.places import run_dir
from jobs.repository import jobs, metrics
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Cause
from tafdil import Client
from tests.api import client, database, queue, run  # noqa: F401  # fixtures
from tests.live import serving


@pytest.fixture
def fence(client: TestClient, database: Database, spec: dict[str, Any]) -> Fence:  # noqa: F811
    """A job that is over, with a hundred points of a curve."""
    held = run(database, client, spec)
    with database.transaction() as session:
        for step in range(1, 101):
            values = {"loss": 1 / step}
            jobs.record(session, held, "metrics", {"step": step, "values": values})
            metrics.add(session, held.job_id, held.attempt, step, values)
        jobs.record(session, held, "warning", {"code": "any", "message": "one"})
        assert jobs.finish(session, held, Cause.FAIL)
    return held


def told(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [(block[1].removeprefix("event: "), json.loads(block[2].removeprefix("data: "))) for block in blocks]


def test_a_stream_leaves_out_the_types_it_is_told_to(client: TestClient, fence: Fence) -> None:  # noqa: F811
    url = f"/v1/jobs/{fence.job_id}/events"
    assert [kind for kind, _ in told(client.get(url).text)].count("metrics") == 100
    found = told(client.get(url, params={"without": ["metrics", "warning"]}).text)
    assert [kind for kind, _ in found] == ["queued", "claimed", "failed"]
    created = client.get(f"/v1/jobs/{fence.job_id}").json()["created_at"]
    assert found[0][1]["at"][:19] == created[:19]
    assert client.get(url, params={"without": "Metrics!"}).status_code == 422


def test_a_stretch_of_the_curves(client: TestClient, fence: Fence) -> None:  # noqa: F811
    url = f"/v1/jobs/{fence.job_id}/metrics"
    series = client.get(url, params={"first_step": 40, "last_step": 60}).json()["series"]
    assert [point["step"] for point in series["loss"]] == list(range(40, 61))
    thinned = client.get(url, params={"first_step": 40, "last_step": 60, "max_points": 4}).json()["series"]["loss"]
    assert (thinned[0]["step"], thinned[-1]["step"]) == (40, 60)
    assert client.get(url, params={"first_step": 101}).json()["series"] == {}


@pytest.mark.parametrize(
    ("last_bytes", "shown"), [(1, ""), (7, "line 4\n"), (8, "line 4\n"), (14, "line 3\nline 4\n"), (10_000, None)]
)
def test_the_end_of_a_log_begins_with_a_whole_line(
    client: TestClient,  # noqa: F811
    fence: Fence,
    settings: Settings,
    last_bytes: int,
    shown: str | None,
) -> None:
    text = "".join(f"line {number}\n" for number in range(5))
    path = run_dir(settings, fence.job_id) / "attempt-1" / "log.txt"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    reply = client.get(f"/v1/jobs/{fence.job_id}/logs", params={"last_bytes": last_bytes})
    assert reply.text == (text if shown is None else shown)


def test_the_python_client_reads_such_parts(settings: Settings, spec: dict[str, Any]) -> None:
    with serving(settings) as live, Client(live.url) as service:
        job = service.submit(spec)
        with live.database.transaction() as session:
            held = jobs.claim_next(session, "worker", 60)
            assert held
            fence = Fence(held.id, held.attempt, held.lease_token or "")
            for step in range(10):
                metrics.add(session, job.id, 1, step, {"loss": float(step)})
            jobs.record(session, fence, "metrics", {"step": 9, "values": {"loss": 9.0}})
            assert jobs.finish(session, fence, Cause.FAIL)
        log = run_dir(live.settings, job.id) / "attempt-1" / "log.txt"
        log.parent.mkdir(parents=True)
        log.write_text("first\nsecond\n")
        assert [event["event"] for event in job.events(without=["metrics"])] == ["queued", "claimed", "failed"]
        assert [point["step"] for point in job.metrics(["loss"], first_step=3, last_step=5)["loss"]] == [3, 4, 5]
        assert job.logs(last_bytes=8) == "second\n"
