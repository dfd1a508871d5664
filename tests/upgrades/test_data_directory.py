"""A data directory of an earlier version opens, shows and compares what it holds, and its paused runs resume."""

import json
import tarfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tafdil import Client, Job
from tests.stack import StackUnderTest

HERE = Path(__file__).parent
PEAK, STEPS, WARM_UP = 1e-2, 600, 300


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[StackUnderTest]:
    folder = tmp_path_factory.mktemp("upgrade")
    with tarfile.open(HERE / "data_0_1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    found = StackUnderTest(folder / "data")
    found.models_dir = folder / "models"
    with found, Client(found.url) as client:
        paused = list(client.jobs(state="paused"))
        assert all(0 < job.checkpoint_step < WARM_UP for job in paused)
        # The oldest first, while the tests look at what was finished.
        for job in reversed(paused):
            job.resume()
        yield found


@pytest.fixture
def client(stack: StackUnderTest) -> Generator[Client]:
    with Client(stack.url) as found:
        yield found


def named(client: Client, name: str) -> Job:
    return next(job for job in client.jobs() if job.name == name)


def test_finished_jobs_are_listed_shown_and_compared(client: Client) -> None:
    finished = list(client.jobs(state="succeeded"))
    assert sorted(job.method for job in finished) == ["cpo", "ipo", "kto"]
    for job in finished:
        shown = client.job(job.id)
        assert (shown.effect, shown.step, shown.percent) == (None, 40, 100.0)
        metadata = client.metadata(job.id)
        assert metadata["complete"]
        assert metadata["training_method"] == job.method
        assert "effect" not in metadata
        assert client.metrics(job.id)["learning_rate"][0]["value"] == 0, "its warm-up started at zero"
        assert client.logs(job.id)
        assert [attempt.outcome for attempt in client.attempts(job.id)] == ["succeeded"]
        answer = client.compare(job.id, "ما عاصمة مصر؟", max_length=8)
        assert answer.result is not None
        assert answer.result["proof"]["trained_fingerprint"] == metadata["weights_sha256"]
        assert answer.result["proof"]["covers"] == "tensors only"


def test_a_dry_run_judges_by_runs_of_the_earlier_version(client: Client) -> None:
    """Their events do not say how long the whole start took."""
    job = next(client.jobs(state="succeeded", method="ipo"))
    assert "since_claim_s" not in next(event.data for event in job.events() if event.event == "first_step")
    found = client.validate(job.spec)
    assert found.state == "succeeded", found.error
    assert found.result
    assert found.result["time"]["startup_seconds"] > 0


def test_a_run_that_was_paused_in_its_warm_up_keeps_its_schedule(stack: StackUnderTest, client: Client) -> None:
    job = client.wait(named(client, "paused").id)
    assert job.state == "succeeded", job.error
    points = client.metrics(job.id)["learning_rate"]
    assert {point["attempt"] for point in points} == {1, 2}
    assert points[-1]["step"] == STEPS
    for point in points:
        # Of the step that was just made, counted from 0; the rise is transformers', from zero.
        step = point["step"] - 1
        share = step / WARM_UP if step < WARM_UP else (STEPS - step) / (STEPS - WARM_UP)
        assert point["value"] == pytest.approx(PEAK * share), point
    assert job.effect is not None
    (event,) = [event for event in job.events() if event.event == "effect"]
    assert event.data["effect"] == job.effect == client.metadata(job.id)["effect"]
    checkpoint = stack.data_dir / "runs" / job.id / "attempt-2" / "output" / f"checkpoint-{STEPS}"
    identity = json.loads((checkpoint / "pending_metrics.json").read_text(encoding="utf-8"))["identity"]
    assert "warm-up" not in identity, "a rerun from it keeps the old schedule as well"


def test_a_run_whose_rows_are_split_otherwise_now_is_refused_by_name(client: Client) -> None:
    """It began with rows of one prompt on both sides."""
    job = client.wait(named(client, "paused with few prompts").id)
    assert job.state == "failed"
    assert job.error
    assert job.error["code"] == "spec_invalid"
    assert "an earlier version, which split or encoded these rows differently" in job.error["message"]
    assert "start again from the first step" in job.error["message"]
