"""The generation worker: `celery -A worker.generation worker -Q compare`. Answers comparisons and keeps models warm."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from celery.signals import worker_process_init

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.places import find_model
from jobs.queue import COMPARE_TASK, CeleryQueue
from jobs.records import ComparisonRecord
from jobs.repository import comparisons, jobs
from jobs.settings import Settings, get_settings
from trainer_core.errors import ModelNotFound, TafdilError, error_dict
from worker.celery_app import app

log = logging.getLogger(__name__)


class WarmModels:
    """The models of the last jobs that were asked, least recently used first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pairs: OrderedDict[str, tuple[str, Any]] = OrderedDict()

    def get(self, job_id: str, artifact_path: str) -> tuple[str, Any]:
        """The method and the models of a job. Raises `ModelNotFound`."""
        from trainer_core.comparison import load_pair

        if job_id not in self._pairs:
            directory = self._settings.runs_dir.resolve() / artifact_path
            if not directory.is_dir():
                raise ModelNotFound(f"the trained model of job {job_id} is gone from the data directory")
            while len(self._pairs) >= self._settings.warm_models:
                self._pairs.popitem(last=False)
            self._pairs[job_id] = load_pair(directory, lambda name: find_model(self._settings, name))
        self._pairs.move_to_end(job_id)
        return self._pairs[job_id]

    def forget(self, job_id: str) -> None:
        """Drops the models of a job."""
        self._pairs.pop(job_id, None)


_warm: WarmModels | None = None


@worker_process_init.connect
def _import_early(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    """Loads torch in the pool's process before the first question, which otherwise waits for it."""
    import trainer_core.methods  # noqa: F401  # pyright: ignore[reportUnusedImport]


@app.task(name=COMPARE_TASK)
def compare(comparison_id: str) -> None:
    """Answers the oldest waiting comparison; the id in the message only wakes."""
    global _warm  # noqa: PLW0603  # the process's cache
    settings = get_settings()
    _warm = _warm or WarmModels(settings)
    database = Database(settings.database)
    try:
        with database.transaction() as session:
            comparison = comparisons.claim_next(session, settings.lease_s)
        if comparison is None:
            log.info("woken for comparison %s, but none is waiting", comparison_id)
            return
        with _kept(database, comparison, settings):
            result, error = _answer(database, _warm, comparison)
        with database.transaction() as session:
            comparisons.finish(session, comparison, result, error)
        CeleryQueue(settings, app).nudge(comparison.id)
    finally:
        database.dispose()


@contextmanager
def _kept(database: Database, comparison: ComparisonRecord, settings: Settings) -> Generator[None]:
    """Renews the lease in the background: generating may take minutes on a CPU."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(settings.heartbeat_s):
            try:
                with database.transaction() as session:
                    comparisons.renew(session, comparison, settings.lease_s)
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
    database: Database, warm: WarmModels, comparison: ComparisonRecord
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    from trainer_core.methods import MODULES

    try:
        with database.transaction() as session:
            job = jobs.get(session, comparison.job_id)
        if job is None or job.artifact_path is None:
            raise ModelNotFound(f"job {comparison.job_id} has no trained model")
        method, pair = warm.get(job.id, job.artifact_path)
        request = comparison.request
        sampling = {"top_p": request["top_p"]} if request["temperature"] > 0 else {}
        answer = pair.compare(
            request["prompt"],
            max_new_tokens=request["max_length"],
            temperature=request["temperature"],
            seed=request["seed"],
            **sampling,
        )
        return MODULES[method].reply(answer), None  # pyright: ignore[reportArgumentType]
    except TafdilError as error:
        return None, error.as_dict()
    except Exception as error:
        log.exception("comparison %s failed", comparison.id)
        # What failed in the middle may be broken; the next question loads it anew.
        warm.forget(comparison.job_id)
        return None, error_dict("internal", f"{type(error).__name__}: {error}")
