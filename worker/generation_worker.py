"""The generation worker: `celery -A worker.generation_worker worker -Q compare`. Its answers are in `worker.generation`."""

from functools import cache
from typing import Any

from celery.signals import worker_init

from jobs.database import Database
from jobs.queue import COMPARE_TASK, CeleryQueue
from jobs.settings import get_settings
from jobs.states import TaskWorker
from worker import gpu
from worker.celery_app import app, is_draining, trace_as
from worker.generation import choose_device
from worker.gpu_turn import GpuTurns, shared_gpu
from worker.signs import give_signs
from worker.task_supervisor import Trade
from worker.task_worker import PoolProcess, stay_offline

worker_init.connect(stay_offline)
trace_as("tafdil-generation-worker")
give_signs("compare")

_pool_process = PoolProcess(Trade(TaskWorker.COMPARE, "worker.generation", starts_early=True))
_lock: gpu.GpuLock | None = None


@worker_init.connect
def _choose_device(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    global _lock  # noqa: PLW0603  # held until this process ends
    _lock = choose_device()
    _pool_process.locks = [_lock.descriptor] if _lock else []


@app.task(name=COMPARE_TASK)
def compare(comparison_id: str) -> None:
    """Answers the waiting comparisons; the message's id only wakes the worker."""
    turns = _gpu_turns()
    if turns is None:
        _pool_process.run()
        return
    settings = get_settings()
    database, queue = Database(settings.database), CeleryQueue(settings)
    try:
        with turns.turn(database, queue) as is_ours:
            if is_ours:
                # One alone, because a run may be waiting for its turn.
                _pool_process.run(most=1)
    finally:
        database.dispose()
        queue.close()


@cache
def _gpu_turns() -> GpuTurns | None:
    """The turns of this process on a GPU that runs come first on; None if it has no such GPU."""
    settings = get_settings()
    device = shared_gpu(settings)
    return GpuTurns(device, settings, is_draining) if device else None
