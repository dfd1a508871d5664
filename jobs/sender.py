"""Sends messages to the broker from its own thread, so that no request waits for a broker that is slow, frozen or away."""

import logging
import queue
import threading
from collections.abc import Callable

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.queue import JobQueue
from jobs.repository import jobs, tasks
from jobs.states import TaskKind

log = logging.getLogger(__name__)

_MOST_WAITING = 10_000
# Interval between health checks of the broker.
_LOOK_EVERY_S = 2.0
_CLOSING_S = 2.0


class Sender:
    """`JobQueue` that returns at once and sends from one thread.

    The dispatcher publishes what the broker did not accept, in its first round after the broker is back.

    Args:
        target: the queue that sends.
        database: where a job or task is marked as not published.
    """

    def __init__(self, target: JobQueue, database: Database) -> None:
        self._target, self._database = target, database
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._is_up = True
        self._thread = threading.Thread(target=self._run, daemon=True, name="sender")
        self._thread.start()

    def publish_training(self, job_id: str, gpu_class: str | None = None) -> bool:
        def send() -> None:
            if not self._took(self._target.publish_training(job_id, gpu_class)):
                with self._database.transaction() as session:
                    jobs.mark_unpublished(session, job_id)

        return self._put(send)

    def publish_task(self, task_id: str, kind: TaskKind) -> bool:
        def send() -> None:
            if not self._took(self._target.publish_task(task_id, kind)):
                with self._database.transaction() as session:
                    tasks.mark_unpublished(session, task_id)

        return self._put(send)

    def nudge(self, subject_id: str) -> None:
        self._put(lambda: self._target.nudge(subject_id))

    def waiting(self, gpu_class: str | None) -> int:
        return self._target.waiting(gpu_class)

    def is_up(self) -> bool:
        """Whether the broker took the last message or has answered since; never blocks."""
        return self._is_up

    def close(self) -> None:
        """Sends waiting messages, for a moment at most."""
        self._put(None)
        self._thread.join(_CLOSING_S)

    def _put(self, send: Callable[[], None] | None) -> bool:
        try:
            self._waiting.put_nowait(send)
        except queue.Full:
            # The dispatcher publishes unclaimed jobs and tasks.
            log.warning("%d messages wait for the broker; this one is not sent", _MOST_WAITING)
            return False
        return True

    def _took(self, answer: bool) -> bool:
        self._is_up = answer
        return answer

    def _run(self) -> None:
        while True:
            try:
                send = self._waiting.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                self._took(self._target.is_up())
                continue
            if send is None:
                return
            try:
                send()
            except DatabaseError as error:
                log.warning("the database is away: %s", str(error).splitlines()[0])
