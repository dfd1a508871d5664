"""What the workers of tasks have in common: a supervisor in the pool process, and the signals of their processes."""

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

from celery.signals import worker_process_init, worker_process_shutdown

from jobs.database import Database
from jobs.queue import CeleryQueue
from jobs.settings import get_settings
from worker.celery_app import is_draining
from worker.task_supervisor import TaskSupervisor, Trade


def leave_gpus_alone(**_: Any) -> None:
    """For `worker_init`: hides GPUs from this worker and its processes, leaving them to training."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def stay_offline(**_: Any) -> None:
    """For `worker_init`: stops libraries from contacting the hub unless it is allowed."""
    if not get_settings().allow_hub:
        os.environ["HF_HUB_OFFLINE"] = "1"


class PoolProcess:
    """The supervisor of a pool process, from its start to its end.

    Attributes:
        locks: file descriptors for the answering processes to keep open. Set them before the pool starts.
    """

    def __init__(self, trade: Trade) -> None:
        self._trade = trade
        self.locks: Sequence[int] = ()
        self._supervisor: TaskSupervisor | None = None
        self._asked_to_end = threading.Event()
        worker_process_init.connect(self._begin, weak=False)
        worker_process_shutdown.connect(self._end, weak=False)

    def _begin(self, **_: Any) -> None:
        self._supervisor = TaskSupervisor(
            self._trade,
            get_settings(),
            is_draining=lambda: is_draining() or self._asked_to_end.is_set(),
            locks=self.locks,
        )
        self._supervisor.start()

    def _end(self, **_: Any) -> None:
        if self._supervisor:
            self._supervisor.close()

    def run(self, most: int | None = None) -> None:
        """Answers what waits, or only `most` of it."""
        assert self._supervisor is not None
        if is_draining():
            return
        self._asked_to_end.clear()
        # A process manager may signal every process of the worker, not just the main one.
        before = signal.signal(signal.SIGTERM, lambda *_: self._asked_to_end.set())
        settings = get_settings()
        database, queue = Database(settings.database), CeleryQueue(settings)
        try:
            self._supervisor.run(database, queue, most)
        finally:
            database.dispose()
            queue.close()
            signal.signal(signal.SIGTERM, before)
