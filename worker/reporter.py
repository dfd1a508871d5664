"""From a training process's reports to the job's record, fenced, in order, and patient with the database.

A report is a JSON object with a `type`: `phase`, `data`, `progress`, `metrics`, `samples`, `warning`, `checkpoint`,
`resumed`, and at the end one of `finished`, `failed` and `stopped`.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.queue import JobQueue
from jobs.repository import jobs, metrics
from jobs.repository.jobs import Fence

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 0.5
_FINAL_TRIES = 60


class AttemptReporter:
    """Collects reports and writes them. While the database is away they wait here.

    Attributes:
        last: the newest report that tells of the end, or an empty dict.
    """

    def __init__(self, database: Database, queue: JobQueue, fence: Fence) -> None:
        self._database, self._queue, self._fence = database, queue, fence
        self._waiting: deque[dict[str, Any]] = deque()
        self._progress: dict[str, Any] | None = None
        self._progress_at = 0.0
        self._first_step: tuple[float, int] | None = None
        self.last: dict[str, Any] = {}

    def receive(self, report: dict[str, Any]) -> None:
        """Takes a report from the training process."""
        if report["type"] in ("finished", "failed", "stopped"):
            self.last = report
        elif report["type"] == "progress":
            self._progress = {**report, "seconds_left": self._seconds_left(report["step"], report["total_steps"])}
        else:
            self._waiting.append(report)

    def flush(self, everything: bool = False) -> None:
        """Writes what waits. With `everything`, tries for a minute before giving up on an absent database."""
        for _ in range(_FINAL_TRIES if everything else 1):
            if self._flush_once(everything):
                return
            time.sleep(1 if everything else 0)

    def try_write(self, write: Callable[[Session], Any]) -> Any:
        """The result of a transaction, or None when the database is away."""
        try:
            with self._database.transaction() as session:
                return write(session)
        except OperationalError as error:
            log.warning("the database is away: %s", str(error).splitlines()[0])
            return None

    def _flush_once(self, everything: bool) -> bool:
        wrote = False
        while self._waiting:
            report = self._waiting[0]
            if self.try_write(lambda session, report=report: (self._write(session, report),)) is None:
                return False
            self._waiting.popleft()
            wrote = True
        due = time.monotonic() - self._progress_at >= _PROGRESS_EVERY_S
        if self._progress and (due or everything):
            progress = self._progress
            if self.try_write(lambda session: (self._write_progress(session, progress),)) is None:
                return False
            self._progress, self._progress_at, wrote = None, time.monotonic(), True
        if wrote:
            self._queue.nudge(self._fence.job_id)
        return True

    def _write(self, session: Session, report: dict[str, Any]) -> None:
        kind = report["type"]
        data = {name: value for name, value in report.items() if name != "type"}
        if kind == "warning":
            jobs.add_warning(session, self._fence, data)
        elif kind == "phase":
            jobs.record(session, self._fence, "phase", data, {"phase": data["phase"]})
        elif jobs.record(session, self._fence, kind, data) and kind == "metrics":
            metrics.add(session, self._fence.job_id, self._fence.attempt, data["step"], data["values"])

    def _write_progress(self, session: Session, progress: dict[str, Any]) -> None:
        jobs.set_progress(session, self._fence, progress["step"], progress["total_steps"], progress["seconds_left"])

    def _seconds_left(self, step: int, total_steps: int) -> float | None:
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = (now, step)
        started, first = self._first_step
        return (now - started) / (step - first) * (total_steps - step) if step > first else None
