"""The checks worker: `celery -A worker.check_worker worker -Q checks`. Its answers are in `worker.checks`."""

from celery.signals import worker_init

from jobs.queue import CHECK_TASK
from jobs.states import TaskWorker
from worker.celery_app import app, trace_as
from worker.signs import give_signs
from worker.task_supervisor import Trade
from worker.task_worker import PoolProcess, leave_gpus_alone, stay_offline

worker_init.connect(leave_gpus_alone)
worker_init.connect(stay_offline)
trace_as("tafdil-checks-worker")
give_signs("checks")

_pool_process = PoolProcess(Trade(TaskWorker.CHECKS, "worker.checks", lanes=2))


@app.task(name=CHECK_TASK)
def check(task_id: str) -> None:
    """Answers the waiting checks; the message's id only wakes the worker."""
    _pool_process.run()
