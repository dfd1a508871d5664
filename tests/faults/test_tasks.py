"""Tasks that loop, swell, hang, crash or are cancelled cost only themselves."""

import os
import shutil
import signal
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from jobs.access import LOCAL
from jobs.database import Database
from jobs.places import install_samples
from jobs.records import TaskRecord
from jobs.repository import tasks
from jobs.service import JobService
from jobs.settings import Settings
from jobs.spec import JOB_SPEC
from jobs.states import TaskKind, TaskState, TaskWorker
from tests.conftest import TINY_MODEL
from tests.fakes import FakeQueue
from tests.rig.office import ANSWERS, Office, answering_processes, lines_of, office
from tests.stack import alive, until
from worker import task_attempt, task_worker
from worker.answering_process import AnsweringProcess
from worker.parent_death import RUN_OOM_SCORE, TASK_OOM_SCORE
from worker.task_supervisor import TaskSupervisor, Trade


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """SQLite alone: what the two databases do differently, the tests of the repository run on both."""
    return f"sqlite:///{tmp_path / 'test.sqlite3'}"


@pytest.fixture
def quick(database: Database, settings: Settings) -> Generator[Office]:
    with office(database, settings, task_limit_s=2) as found:
        yield found


def code_of(office: Office, task_id: str) -> tuple[str, str | None]:
    task = office.over(task_id)
    return task.state, (task.error or {}).get("code")


def test_a_task_is_answered_and_its_process_kept(quick: Office) -> None:
    first = quick.over(quick.ask(text="سؤال \ud800 <|im_end|>", partials=["a", "ab"]))
    second = quick.over(quick.ask(text="x" * 300_000))
    assert first.result
    assert second.result
    assert (first.state, second.state, first.partial) == (TaskState.SUCCEEDED, TaskState.SUCCEEDED, None)
    assert first.result["text"] == "سؤال \ud800 <|im_end|>"
    assert len(second.result["text"]) == 300_000
    assert first.result["pid"] == second.result["pid"] != os.getpid()
    assert code_of(quick, quick.ask(refuses=True)) == ("failed", "spec_invalid")
    assert code_of(quick, quick.ask(raises="oh")) == ("failed", "internal")


def test_a_task_that_loops_ends_at_its_limit_and_the_next_one_is_answered(quick: Office) -> None:
    looping, waiting = quick.ask(loops=True), quick.ask("other")
    assert code_of(quick, looping) == ("failed", "timeout")
    assert "longer than 2 s" in (quick.task(looping).error or {})["message"]
    assert code_of(quick, waiting) == ("succeeded", None)
    assert quick.task(waiting).attempt == 1


def test_a_task_that_takes_too_much_memory_ends_and_frees_it(database: Database, settings: Settings, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with office(database, settings, task_memory_gib=0.2) as open_office:
        swelling = open_office.ask(takes_mib=4096, begun=str(begun))
        waiting = open_office.ask()
        assert code_of(open_office, swelling) == ("failed", "oom_host")
        assert "more than 0.2 GiB" in (open_office.task(swelling).error or {})["message"]
        assert code_of(open_office, waiting) == ("succeeded", None)
        (line,) = lines_of(begun)
        assert not alive({line[0]})


def test_a_running_task_is_cancelled_at_once(quick: Office, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    running, waiting = quick.ask(until=str(tmp_path / "never"), begun=str(begun)), quick.ask()
    until(lambda: lines_of(begun))
    assert quick.cancel(waiting)
    assert quick.cancel(running)
    assert not quick.cancel(running), "once is enough"
    assert code_of(quick, running) == ("cancelled", "cancelled")
    assert code_of(quick, waiting) == ("cancelled", "cancelled")
    assert not quick.cancel(running)
    assert not alive({lines_of(begun)[0][0]}), "its process is gone when it is cancelled"
    assert code_of(quick, quick.ask()) == ("succeeded", None)


def test_a_task_whose_process_dies_is_tried_again_and_poisoned_in_the_end(quick: Office, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    once, always = quick.ask(dies=1), quick.ask(dies=99, begun=str(begun))
    assert (quick.over(once).state, quick.task(once).attempt, quick.task(once).losses) == ("succeeded", 2, 1)
    assert code_of(quick, always) == ("failed", "poisoned")
    assert "SIGKILL" in (quick.task(always).error or {})["message"]
    processes = [pid for pid, _ in lines_of(begun)]
    assert len(set(processes)) == len(processes) == quick.settings.max_losses
    assert code_of(quick, quick.ask()) == ("succeeded", None)


def test_a_task_whose_process_stands_still_is_tried_again(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_attempt, "_SHORTEST_QUIET_S", 3.0)
    with office(database, settings, lease_s=3.0, heartbeat_s=0.5) as open_office:
        stopped = open_office.over(open_office.ask(stops=1))
        assert (stopped.state, stopped.attempt, stopped.losses) == (TaskState.SUCCEEDED, 2, 1)


def test_memory_that_others_fill_costs_a_task_only_an_attempt(quick: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has killed in this group; the task itself held next to nothing."""
    monkeypatch.setattr(task_attempt.OomWatch, "has_risen", lambda _: True)
    killed = quick.over(quick.ask(dies=1))
    assert (killed.state, killed.attempt) == (TaskState.SUCCEEDED, 2)
    monkeypatch.setattr(task_attempt, "memory_limit_bytes", lambda: 1)
    assert code_of(quick, quick.ask(dies=1, takes_mib=64)) == ("failed", "oom_host")


def test_a_looping_check_of_one_tenant_keeps_nobody_else_waiting(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """One tenant's checks fill the worker for hours; another's are answered beside them, in turns."""
    done = tmp_path / "done"
    with office(database, settings, lanes=2) as open_office:
        looping = [open_office.ask("loud", until=str(done)) for _ in range(5)]
        open_office.running(looping[0])
        others = [open_office.ask(tenant) for tenant in ("quiet", "calm", "quiet")]
        assert [code_of(open_office, each) for each in others] == [("succeeded", None)] * 3
        assert [open_office.task(each).state for each in looping] == ["running"] + ["queued"] * 4
        done.touch()
        results = [open_office.over(each).result or {} for each in looping]
        assert len({result["pid"] for result in results}) == 1, "the spare process is for others alone"


def test_a_chat_template_that_loops_costs_one_check(
    database: Database, settings: Settings, spec: dict[str, Any], tmp_path: Path
) -> None:
    """Jinja's sandbox has no clock and no limit of memory. Another tenant's dry run is answered meanwhile."""
    for name, inner in (("loops", ""), ("swells", "x")):
        template = tmp_path / "models" / "acme" / name / "chat_template.jinja"
        shutil.copytree(TINY_MODEL, template.parent)
        assert template.is_file()
        loop = "{% for i in range(99999) %}{% for j in range(99999) %}" + inner + "{% endfor %}{% endfor %}"
        template.write_text(loop, encoding="utf-8")
    settings = settings.model_copy(update={"models_dir": tmp_path / "models"})
    install_samples(settings)
    service = JobService(database, FakeQueue(), settings)

    def ask(tenant: str, model: str) -> str:
        sent = {**spec, "model_name": model}
        own = service.for_caller(replace(LOCAL, tenant=tenant))
        return own.validate(JOB_SPEC.validate_python(sent), sent).id

    with office(database, settings, lanes=2, module="worker.checks", trains=True, task_memory_gib=0.4) as open_office:
        looping = ask("loud", "acme/loops")
        queued = ask("loud", "acme/swells")
        open_office.running(looping)
        quiet = ask("quiet", "tafdil/tiny-arabic-qwen-2")
        answered = open_office.over(quiet)
        assert (answered.state, answered.attempt) == (TaskState.SUCCEEDED, 1)
        assert (answered.result or {})["plan"]["optimizer_steps"] == spec["max_steps"]
        assert open_office.task(looping).state == TaskState.RUNNING
        assert open_office.task(queued).state == TaskState.QUEUED
        assert open_office.cancel(looping)
        assert code_of(open_office, looping) == ("cancelled", "cancelled")
        assert code_of(open_office, queued) == ("failed", "oom_host")


def test_a_worker_that_leaves_queues_its_task_again(database: Database, settings: Settings, tmp_path: Path) -> None:
    begun, done = tmp_path / "begun", tmp_path / "done"
    with office(database, settings, cancel_grace_s=0.2) as first:
        task_id = first.ask(until=str(done), begun=str(begun))
        until(lambda: lines_of(begun))
    (line,) = lines_of(begun)
    assert not alive({line[0]})
    assert (first.task(task_id).state, first.task(task_id).losses) == (TaskState.QUEUED, 0)
    done.touch()
    with office(database, settings) as second:
        assert second.over(task_id).state == TaskState.SUCCEEDED


def test_a_pool_process_that_was_asked_to_end_answers_the_next_message(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal to it alone ends neither the worker nor the process."""
    begun, done = tmp_path / "begun", tmp_path / "done"
    settings = settings.model_copy(update={"cancel_grace_s": 0.1, "request_poll_s": 0.05})
    monkeypatch.setattr(task_worker, "get_settings", lambda: settings)
    closed_office = Office(database, settings)
    task_id = closed_office.ask(until=str(done), begun=str(begun))
    pool_process = task_worker.PoolProcess(Trade(TaskWorker.CHECKS, ANSWERS))

    def ask_to_end() -> None:
        until(lambda: lines_of(begun))
        os.kill(os.getpid(), signal.SIGTERM)

    with answering_processes(settings):
        pool_process._begin()
        signaller = threading.Thread(target=ask_to_end)
        signaller.start()
        try:
            pool_process.run()
            assert closed_office.task(task_id).state == TaskState.QUEUED
            done.touch()
            pool_process.run()
            assert closed_office.task(task_id).state == TaskState.SUCCEEDED
        finally:
            signaller.join()
            pool_process._end()


def test_a_database_that_fails_meanwhile_costs_a_running_task_nothing(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look for another task fails. It has a deadline too, because nobody watches the running one meanwhile."""
    done, breaks, bounded = tmp_path / "done", threading.Event(), list[bool]()
    is_waiting = tasks.is_waiting

    def broken(*arguments: Any, **more: Any) -> bool:
        if breaks.is_set():
            bounded.append(database._deadline.at is not None)
            raise OperationalError("", {}, Exception("the server closed the connection"))
        return is_waiting(*arguments, **more)

    monkeypatch.setattr(tasks, "is_waiting", broken)
    with office(database, settings, lanes=2) as open_office:
        running = open_office.ask(until=str(done))
        open_office.running(running)
        breaks.set()
        until(lambda: len(bounded) > 1)
        breaks.clear()
        assert code_of(open_office, open_office.ask("other")) == ("succeeded", None)
        done.touch()
        over = open_office.over(running)
    assert (over.state, over.attempt, over.losses) == (TaskState.SUCCEEDED, 1, 0)
    assert all(bounded)


def test_a_task_that_arrives_before_its_process_rests_shows_signs_of_life(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    def claimed(**request: Any) -> TaskRecord:
        with database.transaction() as session:
            tasks.insert(session, TaskKind.PREVIEW, "default", request)
            return tasks.claim_next(session, [TaskKind.PREVIEW], 60) or pytest.fail("there is nothing to claim")

    with answering_processes(settings):
        process = AnsweringProcess("tests.rig.late_rest")
        try:
            for task, wanted in ((claimed(), "answered"), (claimed(until=str(tmp_path / "never")), "begun")):
                process.hand(task)
                until(lambda wanted=wanted: wanted in [report["type"] for report in process.hear(0.1) or []], every_s=0)
            until(lambda: [report["type"] for report in process.hear(0.1) or []] == ["alive"], every_s=0)
        finally:
            process.end()


def test_an_answering_process_knows_no_secret_it_does_not_need_and_dies_with_its_supervisor(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor's whole process is killed in the middle of a task."""
    begun = tmp_path / "begun"
    for name in ("TAFDIL_ADMIN_KEY", "TAFDIL_REDIS_URL", "SOME_PASSWORD"):
        monkeypatch.setenv(name, "canary" * 8)
    of_libraries = {
        "XDG_CACHE_HOME": "/cache",
        "REQUESTS_CA_BUNDLE": "/ca.pem",
        "CURL_CA_BUNDLE": "/ca.pem",
        "BNB_CUDA_VERSION": "124",
        "KMP_BLOCKTIME": "0",
    }
    for name, value in of_libraries.items():
        monkeypatch.setenv(name, value)
    with database.transaction() as session:
        tasks.insert(session, TaskKind.PREVIEW, "default", {"begun": str(begun), "loops": True})
    database.dispose()
    pid = os.fork()
    if pid == 0:
        try:
            with office(Database(settings.database), settings, forks=False) as _:
                signal.pause()
        finally:
            os._exit(1)
    until(lambda: lines_of(begun))
    (line,) = lines_of(begun)
    score = int(Path(f"/proc/{line[0]}/oom_score_adj").read_text(encoding="ascii"))
    assert score == TASK_OOM_SCORE > RUN_OOM_SCORE, "a task is soon done again"
    environment = Path(f"/proc/{line[0]}/environ").read_bytes()
    assert b"canary" not in environment
    assert b"TAFDIL_DATABASE_URL" in environment
    assert {f"{name}={value}".encode() for name, value in of_libraries.items()} <= set(environment.split(b"\0"))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: not alive({line[0]}))


@pytest.mark.parametrize(("kind", "gib"), [(TaskKind.PREVIEW, 8), (TaskKind.COMPARE, 12), (TaskKind.MERGE, 12)])
def test_a_task_may_take_a_share_of_the_machine_where_no_limit_is_set(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: TaskKind, gib: int
) -> None:
    monkeypatch.setattr(task_attempt, "memory_limit_bytes", lambda: 16 * 2**30)
    assert task_attempt.limit_bytes(settings, kind) == gib * 2**30
    monkeypatch.setattr(task_attempt, "memory_limit_bytes", lambda: None)
    assert task_attempt.limit_bytes(settings, kind) is None


def test_a_stale_worker_changes_nothing(database: Database, settings: Settings, tmp_path: Path) -> None:
    """Its lease was taken back while its process worked; the process is ended, and only the other answer counts."""
    begun, done = tmp_path / "begun", tmp_path / "done"
    with office(database, settings) as open_office:
        task_id = open_office.ask(until=str(done), begun=str(begun))
        until(lambda: lines_of(begun))
        with database.transaction() as session:
            task = tasks.get(session, task_id)
            assert task
            tasks.renew(session, task, lease_s=-1)
            assert tasks.reap(session, 9) == [task_id]
        until(lambda: len(lines_of(begun)) == 2)
        (first, _), (second, attempt) = lines_of(begun)
        until(lambda: not alive({first}))
        done.touch()
        answered = open_office.over(task_id)
        assert answered.result == {"pid": second, "attempt": attempt, "text": None}
        assert attempt == 2


def test_the_worker_has_an_answer_for_each_of_its_kinds() -> None:
    from worker import check_worker, checks, export_worker, exports, generation, generation_worker

    for worker, module in ((check_worker, checks), (export_worker, exports), (generation_worker, generation)):
        trade: Any = worker._pool_process._trade
        assert trade.module == module.__name__
        assert set(module.ANSWERS) == set(trade.kinds)
        assert isinstance(TaskSupervisor(trade, Settings(), is_draining=bool).lanes, list)
