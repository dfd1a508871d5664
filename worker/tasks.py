"""The train worker: `celery -A worker.tasks worker -Q train --max-tasks-per-child 1`."""

import logging
import os
import socket

from jobs.database import Database
from jobs.queue import TRAIN_TASK, CeleryQueue
from jobs.settings import get_settings
from worker.celery_app import app, is_draining
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)


@app.task(name=TRAIN_TASK)
def train(job_id: str) -> None:
    """Runs the best queued job. The id in the message only wakes: which job is best, SQL knows."""
    if is_draining():
        return
    settings = get_settings()
    settings.make_directories()
    database = Database(settings.database)
    queue = CeleryQueue(settings, app)
    try:
        worker = f"{socket.gethostname()}:{os.getppid()}"
        supervisor = Supervisor(database, queue, settings, worker, is_draining)
        if not supervisor.run_next():
            log.info("woken for job %s, but nothing is queued", job_id)
    finally:
        database.dispose()
