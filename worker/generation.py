"""The generation worker: `celery -A worker.generation worker -Q compare`. Answers comparisons and keeps models warm."""

import logging
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.signals import worker_init, worker_process_init

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.places import find_model
from jobs.queue import COMPARE_TASK, CeleryQueue
from jobs.records import TaskRecord
from jobs.repository import jobs, tasks
from jobs.settings import Settings, get_settings
from jobs.states import TaskKind
from trainer_core.errors import ModelNotFound, TafdilError, error_dict
from worker import gpu
from worker.celery_app import app

if TYPE_CHECKING:
    from trainer_core.warm import WarmPairs

log = logging.getLogger(__name__)


def _warm_pairs(settings: Settings) -> "WarmPairs":
    """The cache of this process, made at the first question."""
    global _warm  # noqa: PLW0603  # the process's cache
    from trainer_core.models import free_memory
    from trainer_core.warm import WarmPairs

    if _warm is None:
        # The other half is for the pair that is loaded before an older one goes, and for answering.
        asked = settings.warm_models_gib
        limit = free_memory() // 2 if asked is None else int(asked * 2**30)
        _warm = WarmPairs(limit, lambda name: find_model(settings, name))
    return _warm


_warm: "WarmPairs | None" = None
_lock: gpu.GpuLock | None = None


@worker_init.connect
def _choose_device(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    """Comparisons take no GPU from a training unless they are told to. A GPU of their own is held as a training holds it."""
    global _lock  # noqa: PLW0603  # held until this process ends
    settings = get_settings()
    if settings.generation_device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    try:
        device = gpu.visible_gpu()
    except gpu.GpuUnknown as error:
        raise SystemExit(f"TAFDIL_GENERATION_DEVICE is {settings.generation_device}, but {error}") from error
    if device is None:
        raise SystemExit(f"TAFDIL_GENERATION_DEVICE is {settings.generation_device}, but this worker sees no GPU")
    os.environ["CUDA_VISIBLE_DEVICES"] = device.uuid
    if settings.generation_device == "own_gpu":
        _lock = gpu.GpuLock.take(device, settings.gpu_lock_dir)
        if _lock is None:
            raise SystemExit(
                f"{device.uuid} ({device.name}) is in use by another worker of this host; give this one another GPU, or set "
                "TAFDIL_GENERATION_DEVICE to cpu or shared_gpu"
            )


@worker_process_init.connect
def _import_early(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    """Loads torch in the pool's process before the first question, which otherwise waits for it."""
    import trainer_core.methods  # noqa: F401  # pyright: ignore[reportUnusedImport]


@app.task(name=COMPARE_TASK)
def compare(comparison_id: str) -> None:
    """Answers the oldest waiting comparison; the id in the message only wakes."""
    settings = get_settings()
    database, queue = Database(settings.database), CeleryQueue(settings, app)
    try:
        with database.transaction() as session:
            comparison = tasks.claim_next(session, [TaskKind.COMPARE], settings.lease_s)
        if comparison is None:
            log.info("woken for comparison %s, but none is waiting", comparison_id)
            return
        with _kept(database, comparison, settings):
            result, error = _answer(database, settings, comparison, queue)
        with database.transaction() as session:
            tasks.finish(session, comparison, result, error)
        queue.nudge(comparison.id)
    finally:
        database.dispose()


@contextmanager
def _kept(database: Database, comparison: TaskRecord, settings: Settings) -> Generator[None]:
    """Renews the lease in the background: generating may take minutes on a CPU."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(settings.heartbeat_s):
            try:
                with database.transaction() as session:
                    tasks.renew(session, comparison, settings.lease_s)
            except DatabaseError as error:
                log.warning("the database is away: %s", str(error).splitlines()[0])

    keeper = threading.Thread(target=renew, daemon=True, name="lease")
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


def _answer(
    database: Database, settings: Settings, comparison: TaskRecord, queue: CeleryQueue
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    from trainer_core.methods import MODULES

    def tell(trained: str, reference: str) -> None:
        texts = {"trained_model_response": trained, "reference_model_response": reference}
        try:
            with database.transaction() as session:
                tasks.tell(session, comparison, texts)
        except DatabaseError as error:
            log.warning("the database is away: %s", str(error).splitlines()[0])
        queue.nudge(comparison.id)

    warm = _warm_pairs(settings)
    try:
        with database.transaction() as session:
            job = jobs.get(session, comparison.job_id or "")
        if job is None or job.artifact_path is None:
            raise ModelNotFound(f"job {comparison.job_id} has no trained model")
        directory = settings.runs_dir.resolve() / job.artifact_path
        if not directory.is_dir():
            raise ModelNotFound(f"the trained model of job {job.id} is gone from the data directory")
        method, pair = warm.get(job.id, directory)
        request = comparison.request
        sampling = {"top_p": request["top_p"]} if request["temperature"] > 0 else {}
        answer = pair.compare(
            request["prompt"],
            max_new_tokens=request["max_length"],
            temperature=request["temperature"],
            seed=request["seed"],
            tell=tell,
            **sampling,
        )
        return MODULES[method].reply(answer), None  # pyright: ignore[reportArgumentType]
    except TafdilError as error:
        return None, error.as_dict()
    except Exception as error:
        log.exception("comparison %s failed", comparison.id)
        # What failed in the middle may be broken; the next question loads it anew.
        warm.forget(str(comparison.job_id))
        return None, error_dict("internal", f"{type(error).__name__}: {error}")
