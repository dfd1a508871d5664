"""Answers tasks: claims them in turns, hands each to an answering process, and ends it past its limits or on a cancel.

Loads no torch. The answers run in processes of their own (`worker.answering`), so one that loops, swells or crashes costs
only its own task. A process is kept for the next task, with the models that it has loaded.
"""

import contextvars
import logging
import select
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from jobs import logs, tracing
from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.queue import JobQueue
from jobs.records import TaskRecord
from jobs.repository import tasks
from jobs.settings import Settings
from jobs.states import TaskKind, TaskWorker
from worker.answering_process import AnsweringProcess
from worker.task_attempt import TaskAttempt

log = logging.getLogger(__name__)

_TICK_S = 0.1


@dataclass(frozen=True)
class Trade:
    """What a worker of tasks does, and how.

    Attributes:
        worker: whose tasks it answers.
        module: the module with the answers.
        lanes: how many tasks it answers at the same time. All lanes but the first are for tenants with nothing running, so
            that the others' tasks cannot keep them waiting. Their processes end when they have nothing more to do.
        keeps_process: whether a process is kept for the next task; otherwise its memory is freed after each.
        starts_early: whether the first process starts with the worker.
    """

    worker: TaskWorker
    module: str
    lanes: int = 1
    keeps_process: bool = True
    starts_early: bool = False

    @property
    def kinds(self) -> Sequence[TaskKind]:
        return self.worker.kinds


class Lane:
    """A place for one task at a time, with its answering process."""

    def __init__(self, trade: Trade, locks: Sequence[int], *, is_spare: bool) -> None:
        self._trade, self._locks, self.is_spare = trade, locks, is_spare
        self.process: AnsweringProcess | None = None
        self._steps: Generator[None] | None = None
        self._context = contextvars.copy_context()

    @property
    def is_free(self) -> bool:
        return self._steps is None

    def ready_process(self) -> AnsweringProcess:
        """A living process; starts one if needed. Raises `OSError`."""
        if self.process is not None and self.process.has_ended:
            self.close()
        if self.process is None:
            self.process = AnsweringProcess(self._trade.module, self._locks)
        return self.process

    def begin(self, steps: Callable[["Lane"], Generator[None]]) -> None:
        # Each task has a context of its own for its log and its span, since lanes take turns in one thread.
        self._context = contextvars.copy_context()
        self._steps = steps(self)

    def step(self) -> None:
        """Runs the task to the next point where it waits."""
        assert self._steps is not None
        try:
            self._context.run(next, self._steps)
        except StopIteration:
            self._finish()
        except Exception:
            # Nobody looks after this process any more. The lease expires, which queues the task again.
            log.exception("a task was left to its lease")
            self.close()
            self._finish()

    def _finish(self) -> None:
        self._steps = None
        if not self._trade.keeps_process:
            self.close()

    def close(self) -> tuple[int | None, list[int]]:
        """Ends the process with everything that it started. Returns its exit code and what could not be ended."""
        if self.process is None:
            return None, []
        process, self.process = self.process, None
        ended = process.end()
        if ended[0] is None:
            log.error("the answering process %d cannot be killed", process.pid)
        return ended


class TaskSupervisor:
    """Answers the tasks of one worker. For one thread: processes die with the thread that started them.

    Args:
        is_draining: whether the worker is shutting down.
        locks: file descriptors that answering processes inherit and keep open.
    """

    def __init__(
        self,
        trade: Trade,
        settings: Settings,
        *,
        is_draining: Callable[[], bool],
        locks: Sequence[int] = (),
    ) -> None:
        self._trade, self.settings, self.is_draining = trade, settings, is_draining
        self.lanes = [Lane(trade, locks, is_spare=number > 0) for number in range(trade.lanes)]

    def start(self) -> None:
        """Starts the first answering process, which then imports in the background."""
        if self._trade.starts_early:
            try:
                self.lanes[0].ready_process()
            except OSError as error:
                log.warning("no answering process yet: %s", error)

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()

    def run(self, database: Database, queue: JobQueue, most: int | None = None) -> int:
        """Answers tasks until none waits, `most` were claimed, or the worker shuts down. Returns how many it claimed."""
        claimed, look_at = 0, 0.0
        while True:
            found = 0
            may_claim = not self.is_draining() and (most is None or claimed < most)
            if time.monotonic() >= look_at and may_claim:
                found = self._fill_free(database, queue)
                claimed += found
                look_at = time.monotonic() + self.settings.request_poll_s
            busy = [lane for lane in self.lanes if not lane.is_free]
            if not busy and not found:
                break
            _await(busy)
            for lane in busy:
                lane.step()
            if len(busy) > sum(not lane.is_free for lane in self.lanes):
                # One has become free.
                look_at = 0.0
        for lane in self.lanes:
            if lane.is_spare:
                lane.close()
        return claimed

    def _fill_free(self, database: Database, queue: JobQueue) -> int:
        """Claims a task for each free lane, while some wait. Returns how many.

        Raises the database's errors only while all lanes are free: a busy one must be watched all the same.
        """
        found = 0
        for lane in [each for each in self.lanes if each.is_free]:
            is_watching = not all(each.is_free for each in self.lanes)
            try:
                with database.within(self.settings.heartbeat_s if is_watching else None):
                    found += self._fill(lane, database, queue)
            except DatabaseError as error:
                if not is_watching:
                    raise
                log.warning("the database is away: %s", str(error).splitlines()[0])
                break
        return found

    def _fill(self, lane: Lane, database: Database, queue: JobQueue) -> bool:
        """Claims a task for a free lane, if one waits."""
        kinds, spare = self._trade.kinds, lane.is_spare
        if spare or not all(other.is_free for other in self.lanes):
            # A look that blocks nobody comes first, because it is repeated while other lanes are busy.
            with database.reading() as session:
                if not tasks.is_waiting(session, kinds, idle_tenants_only=spare):
                    return False
        with database.transaction() as session:
            task = tasks.claim_next(session, kinds, self.settings.lease_s, idle_tenants_only=spare)
        if task is None:
            return False
        lane.begin(lambda own: self._steps(own, task, database, queue))
        return True

    def _steps(self, lane: Lane, task: TaskRecord, database: Database, queue: JobQueue) -> Generator[None]:
        about: dict[str, Any] = {"tafdil.task.id": task.id, "tafdil.job.id": task.job_id, "tafdil.attempt": task.attempt}
        if task.attempt == 1:
            tracing.record("queued", about, parent=task.traceparent, began_at=task.created_at)
        with ExitStack() as stack:
            stack.enter_context(logs.about(task=task.id, job=task.job_id or ""))
            stack.enter_context(tracing.span(task.kind, about, parent=task.traceparent))
            queue.nudge(task.id)
            yield from TaskAttempt(lane, task, database, queue, self.settings, is_draining=self.is_draining).run()
            queue.nudge(task.id)


def _await(lanes: Sequence[Lane]) -> None:
    """Returns when a process has something to say, and after a tick at the latest."""
    speaking = [lane.process.descriptor for lane in lanes if lane.process is not None]
    select.select([each for each in speaking if each is not None], [], [], _TICK_S)
