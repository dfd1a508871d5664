"""Connects one attempt to the database: stores its reports, fenced and in order, and fetches users' requests.

It runs in its own thread, so a database that is slow or away stops neither the run nor its supervision. Meanwhile reports
wait here, and each is stored once. A report is a JSON object with a `type`: `phase`, `data`, `progress`, `metrics`,
`samples`, `warning`, `checkpoint`, `checkpoint_loaded`, `first_step`, `effect`, `review`, `alive`, and at the end one of
`finished`, `failed` and `stopped`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import BadStatement, StatementError
from jobs.queue import JobQueue
from jobs.repository import attempts, jobs, metrics
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Request

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_TICK_S = 0.1
_RETRY_S = 1.0
_PROGRESS_EVERY_S = 0.5
_LAST = ("finished", "failed", "stopped")


class AttemptReporter:
    """Stores an attempt's reports, renews its lease and fetches requests.

    Args:
        memory: returns the bytes that the run uses right now; called at each renewal of the lease.

    Attributes:
        last: the final report, or an empty dict.
        phase: what the attempt is doing.
        checkpoint_step: the step of this attempt's newest checkpoint; None without one.
        requested: the user's request, if any.
        is_fenced: the attempt has lost the job; nothing that it does counts.
    """

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        settings: Settings,
        fence: Fence,
        memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._memory = memory
        self._database, self._queue, self._settings, self._fence = database, queue, settings, fence
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._count = 0
        self._progress: dict[str, Any] | None = None
        self._stored_progress_at = 0.0
        self._first: tuple[float, int] | None = None
        self._is_first_step_stored = False
        self._renew_at = 0.0
        self._look_at = 0.0
        self._closing = threading.Event()
        # Its log lines carry the same fields as this thread's.
        work = copy_context().run
        self._thread = threading.Thread(target=work, args=(self._run,), daemon=True, name="attempt-reporter")
        self.last: dict[str, Any] = {}
        self.phase = "preparing"
        self.checkpoint_step: int | None = None
        self.requested: Request | None = None
        self.is_fenced = False

    def start(self) -> None:
        self._thread.start()

    def receive(self, report: dict[str, Any]) -> None:
        """Accepts a report from the training process."""
        kind = report["type"]
        if kind in _LAST:
            self.last = report
        elif kind == "progress":
            self._progress = {**report, "seconds_left": self._seconds_left(report["step"], report["total_steps"])}
        elif kind != "alive":
            if kind == "phase":
                self.phase = report["phase"]
            elif kind == "checkpoint":
                self.checkpoint_step = report["step"]
            self._count += 1
            self._waiting.append((self._count, report))

    def flush(self, give_up: Callable[[], bool]) -> None:
        """Waits until all reports are stored, the attempt is fenced, or `give_up` returns True. Keeps renewing the lease."""
        while (self._waiting or self._progress) and self._thread.is_alive() and not self.is_fenced and not give_up():
            time.sleep(_TICK_S)

    def close(self, give_up: Callable[[], bool]) -> None:
        """Stores all waiting reports, retrying until `give_up` returns True, then closes. Keeps renewing the lease."""
        self.stop()
        while (self._waiting or self._progress) and not self.is_fenced and not give_up():
            self._round(everything=True)

    def stop(self) -> None:
        """Stops renewing and storing."""
        self._closing.set()
        self._thread.join()

    def insist(self, write: Callable[[Session], Result], give_up: Callable[[], bool]) -> Result | None:
        """Retries a transaction until it succeeds and returns its result; None if `give_up` returned True first."""
        while True:
            try:
                with self._database.transaction() as session:
                    return write(session)
            except BadStatement:
                raise
            except StatementError as error:
                _tell(error)
                if give_up():
                    return None
                time.sleep(_RETRY_S)

    def _run(self) -> None:
        try:
            while not self._closing.wait(_TICK_S):
                self._round()
        except Exception:
            # Nothing renews the lease from here on, so the run must not continue as if the lease were held.
            log.exception("job %s attempt %d: its reports cannot be stored", self._fence.job_id, self._fence.attempt)
            self.is_fenced = True

    def _round(self, everything: bool = False) -> None:
        try:
            self._renew()
            self._look()
            self._flush(everything)
        except StatementError as error:
            _tell(error)
            # When the database is back, renew the lease first.
            self._renew_at = 0.0
            time.sleep(_RETRY_S)

    def _renew(self) -> None:
        now = time.monotonic()
        if now < self._renew_at:
            return
        with self._database.transaction() as session:
            held = jobs.renew(session, self._fence, self._settings.lease_s)
        self._renew_at = now + self._settings.heartbeat_s
        self.is_fenced = self.is_fenced or not held
        # After the renewal, because a driver may be slow.
        size_bytes = self._memory()
        if size_bytes is not None and held:
            with self._database.transaction() as session:
                attempts.set_memory(session, self._fence.job_id, self._fence.attempt, size_bytes)

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        with self._database.reading() as session:
            asked = jobs.requested(session, self._fence)
        self._look_at = now + self._settings.request_poll_s
        self.is_fenced = self.is_fenced or asked is None
        self.requested = Request(asked) if asked else None

    def _flush(self, everything: bool) -> None:
        stored = False
        while self._waiting and not self.is_fenced:
            number, report = self._waiting[0]
            try:
                with self._database.transaction() as session:
                    self._write(session, number, report)
            except BadStatement:
                log.exception("job %s: a report of type %s cannot be stored", self._fence.job_id, report["type"])
            self._waiting.popleft()
            stored = True
            # After hours without a database many reports wait; storing them must not cost the lease or delay a request.
            self._renew()
            self._look()
        progress = self._progress
        is_due = everything or time.monotonic() - self._stored_progress_at >= _PROGRESS_EVERY_S
        if progress and is_due and not self.is_fenced:
            with self._database.transaction() as session:
                self._write_progress(session, progress)
            self._stored_progress_at, stored, self._is_first_step_stored = time.monotonic(), True, True
            if self._progress is progress:
                self._progress = None
        if stored:
            self._queue.nudge(self._fence.job_id)

    def _write(self, session: Session, number: int, report: dict[str, Any]) -> None:
        kind = report["type"]
        data = {name: value for name, value in report.items() if name != "type"}
        if kind == "warning":
            jobs.add_warning(session, self._fence, data, number)
            return
        values = {"phase": data["phase"]} if kind == "phase" else None
        if not jobs.record(session, self._fence, kind, data, values, report=number):
            return
        if kind == "metrics":
            metrics.add(session, self._fence.job_id, self._fence.attempt, data["step"], data["values"])
        elif kind == "checkpoint" or (kind == "checkpoint_loaded" and data["job_id"] == self._fence.job_id):
            # A loaded checkpoint may come from an attempt that died before it could report it.
            jobs.keep_checkpoint(session, self._fence, data["step"])

    def _write_progress(self, session: Session, progress: dict[str, Any]) -> None:
        if not self._is_first_step_stored and self._first:
            jobs.set_first_step(session, self._fence, self._first[1])
        steps = progress["step"], progress["total_steps"], progress["seconds_left"]
        jobs.set_progress(session, self._fence, *steps, tokens=progress.get("tokens", 0))

    def _seconds_left(self, step: int, total_steps: int) -> float | None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, step)
        started, first = self._first
        return (now - started) / (step - first) * (total_steps - step) if step > first else None


def _tell(error: Exception) -> None:
    log.warning("the database is away: %s", str(error).splitlines()[0])
