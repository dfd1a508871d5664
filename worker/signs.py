"""A worker's signs of life: its pool process stores one from time to time, while its main process lives too.

The main process never opens the database, because it forks the pool's processes. It only writes the time to memory that they
share.
"""

import logging
import mmap
import os
import socket
import struct
import threading
import time
from typing import Any

from celery.signals import worker_init, worker_process_init, worker_process_shutdown

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.repository import signs
from jobs.settings import Settings, get_settings
from trainer_core import trackers

log = logging.getLogger(__name__)

_BEAT_S = 1.0
# How long a process that ends waits to take its sign back.
_END_S = 3.0
_INSTANT = struct.Struct("d")
# When the main process last ran, by the clock that all processes of this machine share.
_main = mmap.mmap(-1, _INSTANT.size)


class Signs:
    """Stores one part's signs of life.

    Args:
        kind: the part's kind, which is also its name unless `TAFDIL_PART` gives it another.
        device: the GPU on which it takes turns with runs, if any.
    """

    def __init__(self, database: Database, settings: Settings, kind: str, device: str | None = None) -> None:
        self._database, self._name, self._host = database, settings.part or kind, socket.gethostname()
        self._fields: dict[str, Any] = {"kind": kind, "gpu_class": settings.gpu_class, "device": device, "trackers": []}
        if kind == "train":
            self._fields["trackers"] = trackers.installed()

    def give(self) -> None:
        try:
            with self._database.transaction() as session:
                signs.give(session, self._name, self._host, self._fields)
        except DatabaseError as error:
            log.warning("the database is away: %s", str(error).splitlines()[0])

    def end(self) -> None:
        try:
            with self._database.transaction() as session:
                signs.end(session, self._name, self._host)
        except DatabaseError as error:
            log.warning("the database is away: %s", str(error).splitlines()[0])


def give_signs(kind: str) -> None:
    """Lets the workers of this module give signs of life, as a part of a kind."""

    def beat(**_: Any) -> None:
        # Marks the start too, so that a pool process never takes a main process for a frozen one.
        _mark()
        threading.Thread(target=_beat, daemon=True, name="beat").start()

    ended = threading.Event()
    teller = threading.Thread(target=_tell, args=(kind, ended), daemon=True, name="signs")

    def begin(**_: Any) -> None:
        teller.start()

    def end(**_: Any) -> None:
        ended.set()
        teller.join(_END_S)

    worker_init.connect(beat, weak=False)
    worker_process_init.connect(begin, weak=False)
    worker_process_shutdown.connect(end, weak=False)


def _mark() -> None:
    _main[:] = _INSTANT.pack(time.monotonic())


def _beat() -> None:
    while True:
        _mark()
        time.sleep(_BEAT_S)


def _main_is_alive(within_s: float) -> bool:
    (seen_at,) = _INSTANT.unpack(_main[:])
    return time.monotonic() - seen_at <= within_s


def _tell(kind: str, ended: threading.Event) -> None:
    """Runs in the pool process until it ends."""
    settings = get_settings()
    database = Database(settings.database)
    takes_turns = kind == "compare" and settings.gpu_sharing == "training_first"
    own = Signs(database, settings, kind, os.environ.get("CUDA_VISIBLE_DEVICES") if takes_turns else None)
    try:
        while not ended.is_set():
            if _main_is_alive(settings.part_limit_s / 2):
                own.give()
            ended.wait(settings.heartbeat_s)
        own.end()
    except Exception:
        log.exception("no signs of life are given any more")
    finally:
        database.dispose()
