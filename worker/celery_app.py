"""The Celery application of this process. A warm shutdown asks a running job for a checkpoint."""

import mmap
from typing import Any

from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down

from jobs import logs, tracing
from jobs.queue import make_celery
from jobs.settings import get_settings

app = make_celery(get_settings())

# Shared between the main process, which receives the shutdown, and the pool child, which supervises. A raw byte without a
# lock, because a signal handler writes it.
_draining = mmap.mmap(-1, 1)


def is_draining() -> bool:
    """Whether this worker is shutting down."""
    return bool(_draining[0])


def trace_as(service: str) -> None:
    """Names the traces of this worker's pool processes, which do the work, if tracing is on."""

    def begin(**_: Any) -> None:
        tracing.configure(service, at_once=True)

    worker_process_init.connect(begin, weak=False)


@worker_process_shutdown.connect
def _end_traces(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    tracing.close()


@worker_shutting_down.connect
def _drain(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    _draining[0] = 1


@setup_logging.connect
def _log(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    logs.configure()
