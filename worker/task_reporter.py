"""Connects a running task to the database: renews its lease, stores partial answers, and hears of a cancel.

It runs in its own thread, so that a database that is slow or away stops neither the task nor its limits.
"""

import logging
import threading
import time
from contextvars import copy_context
from typing import Any

from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.queue import JobQueue
from jobs.records import TaskRecord
from jobs.repository import tasks
from jobs.settings import Settings

log = logging.getLogger(__name__)


class TaskReporter:
    """One task's.

    Args:
        quiet_s: how long the process may show no sign of life.

    Attributes:
        is_cancelled: whether a user asked to cancel the task.
        is_fenced: whether another worker may have the task.
    """

    def __init__(self, database: Database, queue: JobQueue, settings: Settings, task: TaskRecord, quiet_s: float) -> None:
        self._database, self._queue, self._settings, self._task = database, queue, settings, task
        self.is_cancelled = self.is_fenced = False
        self._quiet_s, self._lives_until = quiet_s, 0.0
        self._partial: dict[str, Any] | None = None
        self._ended = False
        self._wakes = threading.Event()
        self._looked_at = self._renewed_at = time.monotonic()
        # With the task in every line of its log.
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), daemon=True, name="task-reporter")

    def start(self) -> None:
        self.lives()
        self._thread.start()

    def lives(self) -> None:
        """The process has shown a sign of life. Without one, the lease is renewed no more."""
        self._lives_until = time.monotonic() + self._quiet_s

    def is_over(self) -> None:
        """The process needs to show no more signs of life: its answer is about to be stored."""
        self._lives_until = float("inf")

    def tell(self, partial: dict[str, Any]) -> None:
        """Stores the newest partial answer, soon."""
        self._partial = partial
        self._wakes.set()

    def close(self) -> None:
        """Stops. A partial answer that is not stored yet is dropped: the whole one is there, or there will be none."""
        self._ended = True
        self._wakes.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            self._wakes.wait(self._settings.request_poll_s)
            self._wakes.clear()
            if self._ended:
                return
            try:
                self._talk()
            except DatabaseError as error:
                log.warning("the database is away: %s", str(error).splitlines()[0])

    def _talk(self) -> None:
        now = time.monotonic()
        partial, self._partial = self._partial, None
        is_due = now - self._renewed_at >= self._settings.heartbeat_s and now < self._lives_until
        if partial is not None or is_due:
            with self._database.transaction() as session:
                self._write(session, partial, is_due)
            self._renewed_at = now if is_due else self._renewed_at
            if partial is not None:
                self._queue.nudge(self._task.id)
        if now - self._looked_at >= self._settings.request_poll_s:
            self._looked_at = now
            with self._database.reading() as session:
                asked = tasks.requested(session, self._task)
            self.is_fenced = asked is None
            self.is_cancelled = bool(asked)

    def _write(self, session: Session, partial: dict[str, Any] | None, is_due: bool) -> None:
        if partial is not None:
            tasks.tell(session, self._task, partial)
        if is_due:
            tasks.renew(session, self._task, self._settings.lease_s)
