"""The Celery application of this process, and its end: a warm shutdown that asks a running training to checkpoint."""

import mmap
from typing import Any

from celery.signals import setup_logging, worker_shutting_down

from jobs import logs
from jobs.queue import make_celery
from jobs.settings import get_settings

app = make_celery(get_settings())

# Shared between the main process, which learns of a shutdown, and the pool child, which supervises. A raw byte without a
# lock: the writer is a signal handler.
_draining = mmap.mmap(-1, 1)


def is_draining() -> bool:
    """Whether this worker is shutting down."""
    return bool(_draining[0])


@worker_shutting_down.connect
def _drain(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    _draining[0] = 1


@setup_logging.connect
def _log(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    logs.configure()
