"""Processes that are killed, stopped, told to leave, or hang. Real signals, real processes."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tafdil.client import Client
from tafdil.errors import ApiError
from tests.faults.conftest import StartRig
from tests.rig import history
from tests.rig.stack import Rig, find_postgres, job_spec, running, with_rows
from tests.rig.trainer import state_after
from tests.stack import ENOUGH_S, alive, until

Shared = tuple[Rig, Client]


def finished(rig: Rig, client: Client, job_id: str, steps: int) -> dict[str, Any]:
    """The job once it is over: it succeeded, was published once, no step was lost or done twice at once."""
    job = until(lambda: rig.watch() or _over(client, job_id))
    assert job["state"] == "succeeded", job["error"]
    kinds = [event["event"] for event in client.events(job_id)]
    assert kinds.count("succeeded") == 1
    assert client.metadata(job_id)["state"] == state_after(steps)
    assert not history.overlaps([line for line in rig.history() if line.get("job") == job_id])
    return job


def _over(client: Client, job_id: str) -> dict[str, Any] | None:
    job = client.job(job_id)
    return job if job["state"] in ("succeeded", "failed", "cancelled") else None


def tries(client: Client, job_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two attempts of a job."""
    found = client.attempts(job_id)
    assert len(found) == 2, [(each["worker"], each["outcome"], each["reason"]) for each in found]
    return found[0], found[1]


def the_training(rig: Rig, job_id: str) -> int:
    """The process that trains a job now."""
    return rig.lines(job_id, "start")[-1]["pid"]


def test_a_killed_supervisor(shared: Shared) -> None:
    """The Celery pool child is killed, twice: its training dies with it, and the lease brings the job back."""
    rig, client = shared
    job_id = client.submit(job_spec(300, behaviour={"linger_at": 1, "linger_attempts": 2}))["id"]
    for kills in range(2):
        until(lambda kills=kills: client.job(job_id)["attempt"] == kills + 1)
        step = client.job(job_id)["checkpoint_step"]
        until(lambda step=step: client.job(job_id)["checkpoint_step"] > step)
        training = the_training(rig, job_id)
        os.kill(rig.supervisor_of(training), signal.SIGKILL)
        until(lambda training=training: not alive({training}))
    assert finished(rig, client, job_id, 300)["attempt"] == 3
    assert [a["outcome"] for a in client.attempts(job_id)] == ["worker_lost", "worker_lost", "succeeded"]


def test_a_killed_worker_leaves_no_process(shared: Shared) -> None:
    """The worker's main process is killed: within five seconds its pool child and the training are gone."""
    rig, client = shared
    job_id = client.submit(job_spec(160, behaviour={"linger_at": 10}))["id"]
    running(client, job_id, 10)
    training = the_training(rig, job_id)
    supervisor = rig.supervisor_of(training)
    main = psutil.Process(supervisor).ppid()
    os.kill(main, signal.SIGKILL)
    until(lambda: not alive({main, supervisor, training}), 5)
    assert finished(rig, client, job_id, 160)["attempt"] == 2


def test_a_killed_training_is_tried_again_at_once(shared: Shared) -> None:
    rig, client = shared
    job_id = client.submit(job_spec(300, behaviour={"linger_at": 12}))["id"]
    running(client, job_id, 12)
    os.kill(the_training(rig, job_id), signal.SIGKILL)
    assert finished(rig, client, job_id, 300)["attempt"] == 2
    first, second = tries(client, job_id)
    assert "SIGKILL" in first["reason"]
    assert second["first_step"] % 5 == 0
    assert 0 <= first["last_step"] - second["first_step"] <= 5, "no more is lost than since the last checkpoint"


def test_a_killed_fork_server(shared: Shared) -> None:
    """Every server is killed while a training runs, which does not notice. Later runs start cold once, then warm again."""
    rig, client = shared
    job_id = client.submit(job_spec(160, behaviour={"step_s": 0.05}))["id"]
    running(client, job_id, 5)
    servers = until(lambda: found if len(found := rig.fork_servers()) == 2 else None)
    for server in servers:
        os.kill(server, signal.SIGKILL)
    assert finished(rig, client, job_id, 160)["attempt"] == 1

    def start_of(job_id: str) -> str:
        return next(event["data"]["start"] for event in client.events(job_id) if event["event"] == "first_step")

    assert start_of(job_id) == "warm"
    later = [client.submit(job_spec(20))["id"] for _ in range(6)]
    for each in later:
        finished(rig, client, each, 20)
    assert {start_of(each) for each in later} == {"cold", "warm"}
    assert not set(servers) & set(rig.fork_servers())


def test_a_worker_that_stands_still_past_its_lease_changes_nothing_when_it_wakes(shared: Shared) -> None:
    """Supervisor and training are stopped for three leases. Another worker finishes; then the first ones wake."""
    rig, client = shared
    job_id = client.submit(job_spec(160, behaviour={"linger_at": 8}))["id"]
    running(client, job_id, 8)
    training = the_training(rig, job_id)
    supervisor = rig.supervisor_of(training)
    stopped = [psutil.Process(supervisor).ppid(), supervisor, training]
    rig.stand_still(*stopped)
    try:
        assert finished(rig, client, job_id, 160)["attempt"] == 2
        before = (client.job(job_id), list(client.events(job_id)), client.metrics(job_id))
        published = sorted((path, path.read_bytes()) for path in rig.data_dir.glob(f"runs/{job_id}/attempt-2/**/*.json"))
        time.sleep(3)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    until(lambda: not alive({training}))
    time.sleep(1)
    assert (client.job(job_id), list(client.events(job_id)), client.metrics(job_id)) == before
    assert sorted((path, path.read_bytes()) for path in rig.data_dir.glob(f"runs/{job_id}/attempt-2/**/*.json")) == published
    assert client.attempts(job_id)[0]["outcome"] == "worker_lost"


def test_a_training_whose_supervisor_stands_still_leaves_before_another_begins(shared: Shared) -> None:
    """The supervisor alone is stopped: the training goes on without it, and must not once its lease may be another's."""
    rig, client = shared
    job_id = client.submit(job_spec(200, behaviour={"linger_at": 8}))["id"]
    running(client, job_id, 8)
    training = the_training(rig, job_id)
    supervisor = rig.supervisor_of(training)
    rig.stand_still(supervisor)
    try:
        until(lambda: not alive({training}))
        assert rig.lines(job_id, "step")[-1]["step"] < 200, "it left before its end"
        assert finished(rig, client, job_id, 200)["attempt"] == 2
    finally:
        os.kill(supervisor, signal.SIGCONT)


@pytest.mark.skipif(find_postgres("initdb") is None, reason="needs the programs of a PostgreSQL server (initdb)")
def test_a_supervisor_that_stands_still_in_a_transaction(start_rig: StartRig) -> None:
    """It holds the lock of its job's row, which the reaper and every other writer wait for."""
    freeze = {"train-worker-1": {"TAFDIL_TEST_FAILPOINT": "renew:2:freeze"}}
    rig, client = start_rig(workers=2, database="postgresql", each=freeze)
    ids = [client.submit(job_spec(160, behaviour={"step_s": 0.05}))["id"] for _ in range(2)]
    frozen = until(lambda: [pid for pid in rig.pool_children("train-worker-1") if _state(pid) == psutil.STATUS_STOPPED])
    try:
        attempts = {finished(rig, client, job_id, 160)["attempt"] for job_id in ids}
        assert attempts == {1, 2}
        assert _state(frozen[0]) == psutil.STATUS_STOPPED
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    log = rig.data_dir / "logs" / "train-worker-1.log"
    until(lambda: "is not the job's any more" in log.read_text(encoding="utf-8"))


def _state(pid: int) -> str:
    return psutil.Process(pid).status()


@pytest.mark.parametrize("whole_group", [False, True], ids=["main-process", "every-process"])
def test_a_worker_that_is_told_to_leave_loses_no_step(shared: Shared, whole_group: bool) -> None:
    """TERM to the main process, or to every process as systemd's control-group mode sends it."""
    rig, client = shared
    job_id = client.submit(job_spec(200, save_steps=1000, behaviour={"linger_at": 10}))["id"]
    running(client, job_id, 10)
    training = the_training(rig, job_id)
    supervisor = rig.supervisor_of(training)
    main = psutil.Process(supervisor).ppid()
    for pid in (main, supervisor, training) if whole_group else (main,):
        os.kill(pid, signal.SIGTERM)
    until(lambda: client.job(job_id)["attempt"] == 2 or client.job(job_id)["state"] == "queued")
    job = finished(rig, client, job_id, 200)
    steps = [(line["attempt"], line["step"]) for line in rig.lines(job_id, "step")]
    assert [step for _, step in steps] == list(range(1, 201)), "every step was done once"
    every = client.attempts(job_id)
    # Under load another worker that is leaving may take the job for a moment; it loses nothing either.
    assert [each["outcome"] for each in every] == ["preempted"] * (job["attempt"] - 1) + ["succeeded"]
    assert every[0]["last_step"] == every[-1]["first_step"]
    preempted = next(event["data"] for event in client.events(job_id) if event["event"] == "preempted")
    assert preempted["checkpoint"] is True
    assert preempted["device"]["processes_left"] == []
    until(lambda: rig.watch() or not alive({main}))


def test_a_stopped_stack_leaves_no_process_and_goes_on_when_it_starts_again(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig, Client(rig.url) as client:
        with_rows(rig)
        job_id = client.submit(job_spec(200, save_steps=1000, behaviour={"linger_at": 10}))["id"]
        running(client, job_id, 10)
        pids = rig.all_pids() | {the_training(rig, job_id)}
        assert len(pids) >= 6, "broker, API, dispatcher, worker, its pool child, the training"
    assert not alive(pids)
    with Rig(tmp_path) as rig, Client(rig.url) as client:
        assert finished(rig, client, job_id, 200)["attempt"] == 2
        assert {"preempted", "checkpoint_loaded"} <= {event["event"] for event in client.events(job_id)}
        assert [line["step"] for line in rig.lines(job_id, "step")] == list(range(1, 201)), "every step was done once"


def test_a_job_that_kills_every_worker_ends(shared: Shared) -> None:
    rig, client = shared
    poison = client.submit(job_spec(20, behaviour={"kill_at": 1}))["id"]
    other = client.submit(job_spec(20))["id"]
    job = until(lambda: _over(client, poison))
    assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", "poisoned", 3)
    assert "SIGKILL" in job["error"]["message"]
    assert len(rig.lines(poison, "start")) == 3
    assert finished(rig, client, other, 20)["attempt"] == 1


def test_a_training_that_hangs_is_ended_and_goes_on(start_rig: StartRig) -> None:
    rig, client = start_rig(settings={"TAFDIL_STEP_LIMIT_S": "4", "TAFDIL_QUIET_LIMIT_S": "5"})
    job_id = client.submit(job_spec(20, behaviour={"hang_at": 12}))["id"]
    assert finished(rig, client, job_id, 20)["attempt"] == 2
    first, second = tries(client, job_id)
    assert "stopped responding" in first["reason"]
    assert second["first_step"] == 10
    assert "_misbehave" in client.logs(job_id), "the log tells where it hung"

    stubborn = client.submit(job_spec(20, behaviour={"hang_at": 1, "hang_attempts": 9}))["id"]
    job = until(lambda: _over(client, stubborn))
    assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", "poisoned", 3)
    assert "stopped responding" in job["error"]["message"]

    never_loaded = client.submit(job_spec(20, behaviour={"load_s": 600}))["id"]
    reason = until(lambda: next((each["reason"] for each in client.attempts(never_loaded) if each["outcome"]), None))
    assert "stopped responding" in reason
    client.cancel(never_loaded)


def test_a_step_that_outlasts_the_grace_is_cut_off(start_rig: StartRig) -> None:
    """A pause waits for the step for `TAFDIL_DRAIN_GRACE_S`; then the checkpoint before it counts."""
    rig, client = start_rig(settings={"TAFDIL_DRAIN_GRACE_S": "1"})
    job_id = client.submit(job_spec(20, behaviour={"hang_at": 12}))["id"]
    running(client, job_id, 11)
    client.pause(job_id)
    until(lambda: client.job(job_id)["state"] == "paused")
    client.resume(job_id)
    assert finished(rig, client, job_id, 20)["attempt"] == 2
    assert tries(client, job_id)[1]["first_step"] == 10


PHASES: dict[str, tuple[dict[str, Any], str]] = {
    "loading": ({"load_s": 600}, "loading"),
    "training": ({"step_s": 0.2}, "training"),
    "evaluating": ({"eval_s": 600}, "evaluating"),
    "saving a checkpoint": ({"save_s": 600}, "saving"),
    "saving the model": ({"end_s": 600}, "saving"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancel_in_every_phase(shared: Shared, phase: str) -> None:
    rig, client = shared
    behaviour, name = PHASES[phase]
    job_id = client.submit(job_spec(20, behaviour=behaviour))["id"]
    until(lambda: client.job(job_id)["phase"] == name)
    training = the_training(rig, job_id)
    client.cancel(job_id)
    job = client.wait(job_id, ENOUGH_S)
    assert (job["state"], job["error"]["code"]) == ("cancelled", "cancelled")
    assert not alive({training}), "told only when the process is gone"
    events = list(client.events(job_id))
    kinds = [event["event"] for event in events]
    assert (kinds.count("cancel_requested"), kinds[-1]) == (1, "cancelled")
    assert events[-1]["data"]["device"]["processes_left"] == []
    (attempt,) = client.attempts(job_id)
    assert (attempt["outcome"], attempt["reason"]) == ("cancelled", "cancelled on request")


def test_a_cancel_while_queued_is_done_at_once(shared: Shared) -> None:
    rig, client = shared
    busy = [client.submit(job_spec(200, behaviour={"step_s": 0.1}))["id"] for _ in range(2)]
    job_id = client.submit(job_spec(5))["id"]
    until(lambda: [client.job(job)["state"] for job in busy] == ["running"] * 2)
    assert client.job(job_id)["queue_position"] == 1
    assert client.cancel(job_id)["state"] == "cancelled"
    for job in busy:
        client.cancel(job)
    for job in busy:
        assert client.wait(job, ENOUGH_S)["state"] == "cancelled"
    assert not rig.lines(job_id, "start")


def test_cancel_and_success_have_one_winner(shared: Shared) -> None:
    """Cancels sent around the very end: the job ends once, one way or the other."""
    _, client = shared
    for delay_s in (0.3, 0.45, 0.6, 0.75):
        job_id = client.submit(job_spec(5, behaviour={"step_s": 0.02}))["id"]
        time.sleep(delay_s)
        with suppress(ApiError):  # it may be over already
            client.cancel(job_id)
        job = client.wait(job_id, ENOUGH_S)
        kinds = [event["event"] for event in client.events(job_id)]
        assert kinds.count("succeeded") + kinds.count("cancelled") == 1
        assert kinds[-1] == job["state"]


def test_a_cancel_that_saves_keeps_the_step(shared: Shared) -> None:
    rig, client = shared
    job_id = client.submit(job_spec(200, save_steps=1000, behaviour={"step_s": 0.05}))["id"]
    running(client, job_id, 5)
    client.cancel(job_id, save_checkpoint=True)
    job = client.wait(job_id, ENOUGH_S)
    assert job["state"] == "cancelled"
    last = rig.lines(job_id, "step")[-1]["step"]
    assert job["checkpoint_step"] == last >= 5
    again = client.rerun(job_id, from_checkpoint=True)
    assert finished(rig, client, again["id"], 200)["start_from"] == job_id
    assert rig.lines(again["id"], "step")[0]["step"] == last + 1, "the new job goes on where the old one stood"
    assert client.job(job_id)["state"] == "cancelled", "the old job stays as it was"


def test_pause_and_resume_lose_no_step(shared: Shared) -> None:
    rig, client = shared
    job_id = client.submit(job_spec(160, save_steps=1000, behaviour={"linger_at": 10, "linger_attempts": 2}))["id"]
    for pauses in range(2):
        until(lambda pauses=pauses: client.job(job_id)["attempt"] == pauses + 1)
        running(client, job_id, 10 * (pauses + 1))
        training = the_training(rig, job_id)
        client.pause(job_id)
        until(lambda: client.job(job_id)["state"] == "paused")
        assert not alive({training})
        client.resume(job_id)
    finished(rig, client, job_id, 160)
    assert [line["step"] for line in rig.lines(job_id, "step")] == list(range(1, 161))
    assert [a["outcome"] for a in client.attempts(job_id)] == ["paused", "paused", "succeeded"]
    assert client.job(job_id)["error"] is None
