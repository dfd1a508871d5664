"""One attempt of a task, from its claim to its outcome, as steps between which other tasks take theirs."""

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol

from sqlalchemy.orm import Session

from jobs import tracing
from jobs.database import Database
from jobs.errors import BadStatement, DatabaseError
from jobs.places import without_places
from jobs.queue import JobQueue
from jobs.records import TaskRecord
from jobs.repository import tasks
from jobs.settings import Settings
from jobs.states import ANSWERED_BY, TaskKind, TaskWorker
from trainer_core.errors import error_dict
from trainer_core.wording import Message, rounded, say
from worker import leftovers
from worker.answering_process import AnsweringProcess
from worker.failures import OomWatch, is_most_of, memory_limit_bytes, told_by_exit
from worker.task_reporter import TaskReporter

log = logging.getLogger(__name__)

# How long a process may take to import what it needs and take its task.
_START_S = 300.0
# A process without a sign of life for as long as a lease, and for this long at least, hangs.
_SHORTEST_QUIET_S = 30.0
_LOOK_AT_MEMORY_S = 0.1
# Shares of the machine's memory, or of the control group's, that a task may take where no limit is set.
_SHARE_OF = {TaskWorker.CHECKS: 0.5, TaskWorker.COMPARE: 0.75, TaskWorker.EXPORTS: 0.75}

Outcome = Callable[[Session], bool]
"""Writes how the attempt ended. False: it had lost the task."""


class _Lane(Protocol):
    """Where the attempt's process lives; see `worker.task_supervisor.Lane`."""

    def ready_process(self) -> AnsweringProcess: ...
    def close(self) -> tuple[int | None, list[int]]: ...


def limit_s(settings: Settings, kind: TaskKind) -> float:
    """How long a task of a kind may take, in seconds."""
    return settings.export_limit_s if ANSWERED_BY[kind] is TaskWorker.EXPORTS else settings.task_limit_s


def limit_bytes(settings: Settings, kind: TaskKind) -> int | None:
    """How much memory a task of a kind may take, beyond what its process held before."""
    if settings.task_memory_gib is not None:
        return int(settings.task_memory_gib * 2**30)
    whole = memory_limit_bytes()
    return None if whole is None else int(whole * _SHARE_OF[ANSWERED_BY[kind]])


class TaskAttempt:
    """One attempt. `run` yields whenever it waits for the process."""

    def __init__(
        self,
        lane: _Lane,
        task: TaskRecord,
        database: Database,
        queue: JobQueue,
        settings: Settings,
        *,
        is_draining: Callable[[], bool],
    ) -> None:
        self._lane, self._task, self._database, self._settings = lane, task, database, settings
        self._is_draining = is_draining
        self._quiet_s = max(settings.lease_s, _SHORTEST_QUIET_S)
        self._reporter = TaskReporter(database, queue, settings, task, self._quiet_s)
        self._limit_s = limit_s(settings, TaskKind(task.kind))
        self._limit_bytes = limit_bytes(settings, TaskKind(task.kind))
        self._oom_watch = OomWatch()
        self._began_at: float | None = None
        self._base_bytes = self._most_bytes = 0
        self._measured_at = 0.0
        self._drain_ends_at: float | None = None

    def run(self) -> Generator[None]:
        self._reporter.start()
        try:
            outcome = yield from self._watched()
            self._reporter.is_over()
            if outcome is not None:
                yield from self._stored(outcome)
        finally:
            self._reporter.close()

    def _watched(self) -> Generator[None, None, Outcome | None]:
        """Hands the task over and waits until it is answered or must end. None: there is nothing to write."""
        process = self._lane.ready_process()
        handed_at = time.monotonic()
        # What the process said while it was idle is of earlier tasks.
        process.heard_at = handed_at
        process.hand(self._task)
        while True:
            reports = process.hear(0)
            for report in reports or []:
                if report["type"] == "stale":
                    return None
                if (outcome := self._received(process, report)) is not None:
                    return outcome
            if reports is None:
                return self._died()
            if (ended := self._must_end(process, handed_at)) is not None:
                # The process group is gone before the outcome is written, and its memory with it.
                self._lane.close()
                self._clear()
                return ended() if not self._reporter.is_fenced else None
            yield

    def _received(self, process: AnsweringProcess, report: dict[str, Any]) -> Outcome | None:
        self._reporter.lives()
        kind = report["type"]
        if kind == "alive" or report["task"] != self._task.id:
            return None
        if kind == "begun":
            self._began_at = time.monotonic()
            self._base_bytes = process.held_bytes()
        elif kind == "partial":
            self._reporter.tell(report["partial"])
        elif kind == "answered":
            return self._finish(report["result"], None)
        elif kind == "failed":
            return self._finish(None, report["error"])
        elif kind == "cut_off":
            return self._lost(say("task_cut_off"))
        return None

    def _must_end(self, process: AnsweringProcess, handed_at: float) -> Callable[[], Outcome] | None:
        """Why the process must be killed now, as what makes the outcome; None: it need not."""
        now = time.monotonic()
        self._oom_watch.look()
        if self._reporter.is_fenced:
            log.warning("task %s attempt %d belongs to another worker now", self._task.id, self._task.attempt)
            tracing.note({"tafdil.outcome": "fenced"})
            return lambda: lambda session: False  # noqa: ARG005
        if self._reporter.is_cancelled:
            return lambda: lambda session: tasks.cancel_held(session, self._task)
        if self._began_at is not None:
            ended = self._past_limit(process, now, now - self._began_at)
        else:
            ended = (lambda: self._lost(say("task_not_begun"))) if now - handed_at > _START_S else None
        return ended or self._released(now)

    def _past_limit(self, process: AnsweringProcess, now: float, took_s: float) -> Callable[[], Outcome] | None:
        if took_s > self._limit_s:
            return lambda: self._failed("timeout", say("task_timed_out", seconds=rounded(self._limit_s)))
        if now - self._measured_at >= _LOOK_AT_MEMORY_S:
            self._measured_at = now
            self._most_bytes = max(self._most_bytes, process.held_bytes() - self._base_bytes)
        limit = self._limit_bytes
        if limit is not None and self._most_bytes > limit:
            return lambda: self._failed("oom_host", say("task_too_large", gib=rounded(limit / 2**30)))
        is_quiet = now - process.heard_at > self._quiet_s
        return (lambda: self._lost(say("task_hung"))) if is_quiet else None

    def _released(self, now: float) -> Callable[[], Outcome] | None:
        """A worker that shuts down gives its task a moment to finish."""
        if not self._is_draining():
            return None
        self._drain_ends_at = self._drain_ends_at or now + self._settings.cancel_grace_s
        is_over = now >= self._drain_ends_at
        return (lambda: lambda session: tasks.release(session, self._task)) if is_over else None

    def _died(self) -> Outcome:
        """Its process has ended by itself, or was killed by somebody else."""
        has_risen = self._oom_watch.has_risen()
        code, _ = self._lane.close()
        self._clear()
        if self._is_draining():
            # Whoever stops a worker may signal each of its processes.
            return lambda session: tasks.release(session, self._task)
        if code is not None and code < 0 and has_risen:
            if is_most_of(self._most_bytes, memory_limit_bytes()):
                return self._failed("oom_host", say("host_killed_task"))
            held_mib = self._most_bytes // 2**20
            return self._lost(say("task_killed_for_others_memory", held_mib=held_mib), pause_s=self._settings.memory_pause_s)
        return self._lost(told_by_exit(code or 0, "task"))

    def _clear(self) -> None:
        try:
            leftovers.clear(self._database, self._settings, self._task)
        except Exception:
            # The outcome counts more than what is left.
            log.exception("files of task %s attempt %d are left", self._task.id, self._task.attempt)

    def _failed(self, code: str, message: Message) -> Outcome:
        return self._finish(None, error_dict(code, message))

    def _finish(self, result: dict[str, Any] | None, error: dict[str, Any] | None) -> Outcome:
        if error:
            tracing.fail(error["code"])
            error = without_places(self._settings, error)
        return lambda session: tasks.finish(session, self._task, result, error)

    def _lost(self, reason: str, *, pause_s: float = 0.0) -> Outcome:
        log.warning("task %s attempt %d: %s", self._task.id, self._task.attempt, reason)
        tracing.fail("worker_lost")
        return lambda session: tasks.lose(session, self._task, self._settings.max_losses, reason, pause_s)

    def _stored(self, outcome: Outcome) -> Generator[None]:
        """Writes the outcome, as soon as the database takes it."""
        while not self._reporter.is_fenced:
            try:
                with self._database.transaction() as session:
                    outcome(session)
                return
            except BadStatement as error:
                log.exception("the answer of task %s cannot be stored", self._task.id)
                outcome = self._failed("internal", say("task_broke", kind=type(error).__name__, problem=str(error.orig)))
            except DatabaseError as error:
                log.warning("the database is away: %s", str(error).splitlines()[0])
                if self._is_draining():
                    # The lease expires, which queues the task again.
                    return
            yield
