"""A generation worker's turn on a GPU that runs come first on.

The turn is the lock that a run holds too: no run starts while a comparison is answered, and no comparison is answered while
a run trains.
"""

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from jobs import quotas
from jobs.database import Database
from jobs.queue import JobQueue
from jobs.records import JobRecord
from jobs.repository import jobs
from jobs.settings import Settings
from worker import gpu
from worker.gpu import Gpu, GpuLock

log = logging.getLogger(__name__)

_TICK_S = 0.5
# How long the GPU is left free for a run that was woken. A worker that lives asks its driver, and takes the lock, sooner.
_LEFT_FREE_S = 5.0


class GpuTurns:
    """Turns of one worker.

    Args:
        device: the GPU that it shares with runs.
        is_draining: whether the worker is shutting down.
    """

    def __init__(self, device: Gpu, settings: Settings, is_draining: Callable[[], bool]) -> None:
        self._device, self._settings, self._is_draining = device, settings, is_draining
        self._wait_again_at = 0.0
        self._left_free_until = 0.0

    @contextmanager
    def turn(self, database: Database, queue: JobQueue) -> Generator[bool]:
        """Whether the worker may use the GPU in the block. If so, a run that had to wait is woken afterwards.

        Waits while a run trains, or has been woken and may take the GPU, but for less time than passes until the dispatcher
        publishes waiting comparisons again, so that their messages do not pile up.
        """
        lock = self._take(database)
        if lock is None:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
            if job := self._next_run(database):
                self._left_free_until = time.monotonic() + _LEFT_FREE_S
                queue.publish_training(job.id, job.gpu_class)

    def _next_run(self, database: Database) -> JobRecord | None:
        """The run that a train worker with this worker's settings would claim."""
        with database.reading() as session:
            spent = quotas.spent_tenants(session, self._settings)
            return jobs.next_claimable(session, self._settings.gpu_class, without=spent)

    def _take(self, database: Database) -> GpuLock | None:
        """The lock; None if a run still holds or may want it after the wait, or held it a moment ago."""
        patience_s = self._settings.republish_s / 2
        ends_at = time.monotonic() + patience_s
        while True:
            is_left_free = time.monotonic() < self._left_free_until and self._next_run(database) is not None
            lock = None if is_left_free else GpuLock.take(self._device, self._settings.gpu_lock_dir)
            if lock is not None:
                self._wait_again_at = 0.0
                return lock
            now = time.monotonic()
            if now < self._wait_again_at or self._is_draining():
                return None
            if now >= ends_at:
                log.info("%s (%s) belongs to a run; comparisons wait", self._device.uuid, self._device.name)
                self._wait_again_at = now + patience_s
                return None
            time.sleep(_TICK_S)


def shared_gpu(settings: Settings) -> Gpu | None:
    """The GPU that comparisons and runs take turns on; None if they do not."""
    return gpu.visible_gpu() if settings.gpu_sharing == "training_first" else None
