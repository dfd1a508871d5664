"""Answers of the generation worker (`worker.generation_worker`): comparisons. Keeps models warm."""

import gc
import os
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.places import data_places, find_model
from jobs.records import JobRecord
from jobs.settings import Settings, get_settings
from jobs.spec import library_config
from jobs.states import TaskKind
from trainer_core import held_out
from trainer_core.errors import TafdilError
from trainer_core.generation_options import DefaultLength
from worker import gpu
from worker.desk import Answer, Desk, model_directory, trained_job

if TYPE_CHECKING:
    from trainer_core.comparison import Comparison, ModelPair
    from trainer_core.warm import WarmPairs

# Default length of an answer, in tokens, cut to what the model has room for.
_DEFAULT_LENGTH = DefaultLength(256)


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


def choose_device() -> gpu.GpuLock | None:
    """Sets the device for this worker's processes. By default comparisons use no GPU, so that jobs have them.

    A GPU of their own is locked as a job locks it; returns that lock, to be held while the worker lives.
    """
    settings = get_settings()
    if settings.gpu_sharing is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return None
    try:
        device = gpu.visible_gpu()
    except gpu.GpuUnknown as error:
        raise SystemExit(f"TAFDIL_GPU_SHARING is {settings.gpu_sharing}, but {error}") from error
    if device is None:
        raise SystemExit(f"TAFDIL_GPU_SHARING is {settings.gpu_sharing}, but this worker sees no GPU")
    os.environ["CUDA_VISIBLE_DEVICES"] = device.uuid
    if settings.gpu_sharing != "own":
        return None
    lock = gpu.GpuLock.take(device, settings.gpu_lock_dir)
    if lock is None:
        raise SystemExit(
            f"{device.uuid} ({device.name}) is in use by another worker of this host; give this one another GPU, or set "
            "TAFDIL_GPU_SHARING to training_first or share"
        )
    return lock


def preload() -> None:
    """Loads torch in the answering process, so that the first question need not wait for it."""
    # Imports are permanent: the garbage collector need not scan them, now or while answering.
    gc.disable()
    import trainer_core.methods  # noqa: F401  # pyright: ignore[reportUnusedImport]

    gc.freeze()
    gc.enable()


def _answer(desk: Desk) -> dict[str, Any]:
    if desk.settings.gpu_sharing != "training_first":
        return _compared(desk)
    try:
        return _compared(desk)
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        _leave_gpu(desk.settings)


def _let_go(error: BaseException | None) -> None:
    """Drops what the frames of an error and of its causes hold, such as models."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _leave_gpu(settings: Settings) -> None:
    """Drops every model, so that the next run has the GPU's memory. The driver's own share stays with this process."""
    import torch

    for name in _warm.names if _warm else ():
        _warm_pairs(settings).forget(name)
    gc.collect()
    torch.cuda.empty_cache()


def _compared(desk: Desk) -> dict[str, Any]:
    # Before a warm copy of the model is used: the model may have been deleted.
    job = trained_job(desk)
    directory = model_directory(desk, job)
    prompts = _held_out(desk, job) if desk.task.kind == TaskKind.HELD_OUT else []
    warm = _warm_pairs(desk.settings)
    try:
        method, pair = warm.get(job.id, directory)
        return _answer_many(desk, pair, prompts) if prompts else _answer_one(desk, method, pair)
    except TafdilError:
        raise
    except Exception:
        # A pair that failed midway may be broken; the next question reloads it.
        warm.forget(job.id)
        raise


def _answer_one(desk: Desk, method: str, pair: "ModelPair") -> dict[str, Any]:
    from trainer_core.methods import METHOD_OF

    def tell(trained: str, reference: str) -> None:
        desk.tell({"trained_model_response": trained, "reference_model_response": reference})

    request = desk.task.request
    sampling = {"top_p": request["top_p"]} if request["temperature"] > 0 else {}
    answer = pair.compare(
        request["prompt"],
        max_new_tokens=request["max_length"] or _DEFAULT_LENGTH,
        temperature=request["temperature"],
        seed=request["seed"],
        tell=tell,
        **sampling,
    )
    return METHOD_OF[method].reply(answer)


def _held_out(desk: Desk, job: JobRecord) -> list[held_out.HeldOutPrompt]:
    """The prompts to ask, read from the job's datasets before any model is loaded."""
    spec = job.resolved_spec
    config = library_config(spec, data_places(desk.settings, spec))
    recorded = ((job.metadata_ or {}).get("review") or {}).get("held_out_rows")
    return held_out.read(config, recorded)


def _answer_many(desk: Desk, pair: "ModelPair", prompts: Sequence[held_out.HeldOutPrompt]) -> dict[str, Any]:
    length = desk.task.request["max_length"]
    # Training cuts prompts that are too long; a comparison would refuse them.
    asked = [each for each in prompts if pair.has_room(each.prompt, length)] or prompts
    asked = asked[: desk.task.request["prompts"]]
    so_far: dict[str, Any] = {"prompts": 0, "asked": len(asked)}
    result: dict[str, Any] = {}

    def compare(each: held_out.HeldOutPrompt) -> "Comparison":
        def tell(trained: str, reference: str) -> None:
            answers = {"trained_model_response": trained, "reference_model_response": reference}
            desk.tell({**so_far, "current": {"row": each.name, "prompt": each.prompt, **answers}})

        return pair.compare(each.prompt, max_new_tokens=length, tell=tell, wanted=each.wanted)

    for result in held_out.answer(asked, compare):  # the last one is complete
        # The answers grow with each prompt, and would be stored again each time.
        so_far = {name: value for name, value in result.items() if name != "answers"}
        desk.tell({**so_far, "current": None})
    return result


ANSWERS: Mapping[TaskKind, Answer] = {TaskKind.COMPARE: _answer, TaskKind.HELD_OUT: _answer}
