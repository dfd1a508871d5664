"""The generation worker: `celery -A worker.generation worker -Q compare`. Answers comparisons and keeps models warm."""

import gc
import os
from typing import TYPE_CHECKING, Any

from celery.signals import worker_init, worker_process_init

from jobs.places import find_model
from jobs.queue import COMPARE_TASK
from jobs.repository import jobs
from jobs.settings import Settings, get_settings
from jobs.states import TaskKind
from trainer_core.errors import ModelNotFound, TafdilError
from trainer_core.generation_options import DefaultLength
from trainer_core.wording import say
from worker import gpu
from worker.celery_app import app, trace_as
from worker.task_runner import Desk, model_directory, run_next, stay_offline

if TYPE_CHECKING:
    from trainer_core.warm import WarmPairs

# Default length of an answer, in tokens, cut to what the model has room for.
_DEFAULT_LENGTH = DefaultLength(256)

trace_as("tafdil-generation-worker")


def _warm_pairs(settings: Settings) -> "WarmPairs":
    """The cache of this process, created on first use."""
    global _warm  # noqa: PLW0603  # the process's cache
    from trainer_core.models import free_memory
    from trainer_core.warm import WarmPairs

    if _warm is None:
        # The other half is for answering, and for a new pair that is loaded before an older one is dropped.
        asked = settings.warm_models_gib
        limit = free_memory() // 2 if asked is None else int(asked * 2**30)
        _warm = WarmPairs(limit, lambda name: find_model(settings, name))
    return _warm


_warm: "WarmPairs | None" = None
_lock: gpu.GpuLock | None = None

worker_init.connect(stay_offline)


@worker_init.connect
def _choose_device(**_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
    """By default comparisons use no GPU, so that jobs have them. A GPU of their own is locked as a job locks it."""
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
    """Loads torch in the pool process, so that the first question need not wait for it."""
    # Imports are permanent: the garbage collector need not scan them, now or while answering.
    gc.disable()
    import trainer_core.methods  # noqa: F401  # pyright: ignore[reportUnusedImport]

    gc.freeze()
    gc.enable()


@app.task(name=COMPARE_TASK)
def compare(comparison_id: str) -> None:
    """Answers the oldest waiting comparison; the message's id only wakes the worker."""
    run_next(app, [TaskKind.COMPARE], _answer)


def _answer(desk: Desk) -> dict[str, Any]:
    from trainer_core.methods import METHOD_OF

    def tell(trained: str, reference: str) -> None:
        desk.tell({"trained_model_response": trained, "reference_model_response": reference})

    job_id, request = str(desk.task.job_id), desk.task.request
    with desk.database.reading() as session:
        job = jobs.get(session, job_id)
    if job is None or job.artifact_path is None:
        raise ModelNotFound(say("job_not_trained", id=job_id))
    directory = model_directory(desk, job)
    warm = _warm_pairs(desk.settings)
    sampling = {"top_p": request["top_p"]} if request["temperature"] > 0 else {}
    try:
        method, pair = warm.get(job.id, directory)
        answer = pair.compare(
            request["prompt"],
            max_new_tokens=request["max_length"] or _DEFAULT_LENGTH,
            temperature=request["temperature"],
            seed=request["seed"],
            tell=tell,
            **sampling,
        )
    except TafdilError:
        raise
    except Exception:
        # A pair that failed midway may be broken; the next question reloads it.
        warm.forget(job.id)
        raise
    return METHOD_OF[method].reply(answer)
