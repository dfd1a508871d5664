"""The exports worker: `celery -A worker.export_worker worker -Q exports`. Its answers are in `worker.exports`."""

from celery.signals import worker_init

from jobs.queue import EXPORT_TASK
from jobs.states import TaskWorker
from worker.celery_app import app, trace_as
from worker.signs import give_signs
from worker.task_supervisor import Trade
from worker.task_worker import PoolProcess, leave_gpus_alone

worker_init.connect(leave_gpus_alone)
trace_as("tafdil-exports-worker")
give_signs("exports")

# The memory of a merge is freed by the end of its process.
_pool_process = PoolProcess(Trade(TaskWorker.EXPORTS, "worker.exports", keeps_process=False))


@app.task(name=EXPORT_TASK)
def export(task_id: str) -> None:
    """Runs the waiting exports; the message's id only wakes the worker."""
    _pool_process.run()
