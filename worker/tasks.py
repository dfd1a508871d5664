"""The train worker: `celery -A worker.tasks worker -Q train`."""

import logging
import os
import signal
import socket
import threading
from typing import Any

from celery.signals import celeryd_after_setup, worker_process_init, worker_process_shutdown

from jobs.database import Database
from jobs.queue import TRAIN_TASK, CeleryQueue, train_queue
from jobs.settings import get_settings
from worker import gpu, supervisor
from worker.celery_app import app, is_draining, trace_as
from worker.dispatcher import warn_of_other_host
from worker.signs import give_signs
from worker.supervisor import Supervisor
from worker.training_process import whole_environment
from worker.warm_start import ForkServer

log = logging.getLogger(__name__)

trace_as("tafdil-train-worker")
give_signs("train")

# One per pool process: the runs that it forks become children of this process.
_fork_server: ForkServer | None = None


@worker_process_init.connect
def _start_fork_server(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    """Imports everything before the first job arrives."""
    global _fork_server  # noqa: PLW0603  # the process's
    settings = get_settings()
    if settings.warm_start:
        _fork_server = ForkServer(supervisor.TRAINER, whole_environment(supervisor.variables(settings)))
        if settings.warm_start == "gpu" or not gpu.may_be_visible():
            _fork_server.start()


@worker_process_shutdown.connect
def _end_fork_server(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    if _fork_server:
        _fork_server.close()


@celeryd_after_setup.connect
def _serve_own_class(instance: Any, **_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    """Subscribes a worker with a class to that class's queue too."""
    gpu_class = get_settings().gpu_class
    if gpu_class:
        instance.app.amqp.queues.select_add(train_queue(gpu_class))


@app.task(name=TRAIN_TASK)
def train(job_id: str) -> None:
    """Runs the next queued job. The message's id only wakes the worker: SQL decides which job is next."""
    if is_draining():
        return
    asked_to_end = threading.Event()
    # A process manager may signal every process of the worker, not just the main one. This process then asks its run for a
    # checkpoint, as it does when the main process asks it to.
    before = signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())
    settings = get_settings()
    settings.make_directories()
    database = Database(settings.database)
    queue = CeleryQueue(settings)
    try:
        with database.transaction() as session:
            warn_of_other_host(session, database, settings)
        runner = Supervisor(
            database,
            queue,
            settings,
            worker=f"{socket.gethostname()}:{os.getppid()}",
            is_draining=lambda: is_draining() or asked_to_end.is_set(),
            trainer=supervisor.TRAINER,
            fork_server=_fork_server,
        )
        if not runner.run_next():
            log.info("woken, but nothing was claimed")
    finally:
        database.dispose()
        signal.signal(signal.SIGTERM, before)
