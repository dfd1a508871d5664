"""The checks worker: `celery -A worker.checks worker -Q checks`. Dry runs and previews: only a tokenizer, on the CPU."""

from typing import TYPE_CHECKING, Any

from celery.signals import worker_init

from jobs.places import data_places, dataset_file, find_model, model_places
from jobs.queue import CHECK_TASK
from jobs.repository import attempts, kept_jobs
from jobs.spec import library_config
from jobs.states import TaskKind
from worker import gpu
from worker.celery_app import app, trace_as
from worker.task_runner import Desk, leave_gpus_alone, run_next, stay_offline

if TYPE_CHECKING:
    from trainer_core.dry_run import Machine

# Number of a model's latest runs from which to estimate the speed of the next.
_RUNS_ASKED = 10


worker_init.connect(leave_gpus_alone)
trace_as("tafdil-checks-worker")
worker_init.connect(stay_offline)


@app.task(name=CHECK_TASK)
def check(task_id: str) -> None:
    """Answers the oldest waiting check; the message's id only wakes the worker."""
    run_next(app, [TaskKind.VALIDATE, TaskKind.PREVIEW], _answer)


def _answer(desk: Desk) -> dict[str, Any]:
    return _validate(desk) if desk.task.kind == TaskKind.VALIDATE else _preview(desk)


def _validate(desk: Desk) -> dict[str, Any]:
    from trainer_core.dry_run import dry_run

    spec = desk.task.request["spec"]
    models = model_places(desk.settings, spec)
    found = dry_run(library_config(spec, data_places(desk.settings, spec)), _machine(desk, spec), locate=models.__getitem__)
    return {"spec": spec, **found}


def _machine(desk: Desk, spec: dict[str, Any]) -> "Machine":
    """The machine the job would run on, judged by earlier attempts on workers of its class; otherwise this machine."""
    from trainer_core.dry_run import Machine
    from trainer_core.machines import this_machine

    with desk.database.reading() as session:
        last = attempts.last_of_class(session, spec["gpu_class"])
        speeds = kept_jobs.last_speeds(session, desk.task.tenant, spec["method"], spec["model_name"], _RUNS_ASKED)
    here = this_machine()
    if last is None or last.device is None:
        on_gpu, name = False, here.name
    else:
        on_gpu, name = True, str((last.device_report or {}).get("name") or last.device)
    known = sorted(speed["flops_per_s"] for speed in speeds if speed["on_gpu"] == on_gpu)
    if known:
        return Machine(on_gpu, name, known[len(known) // 2], True, None if on_gpu else here.free_bytes)
    if not on_gpu:
        return here
    return Machine(on_gpu, name, gpu.typical_flops_per_s(name))


def _preview(desk: Desk) -> dict[str, Any]:
    from trainer_core.dry_run import preview
    from trainer_core.rows import peek_rows

    request = desk.task.request
    path = dataset_file(desk.settings, request["dataset_id"])
    rows = peek_rows(path, request["first_row"], request["rows"])
    config = library_config(request["spec"], {"dataset_path": str(path)})
    return {"rows": preview(rows, config, locate=lambda name: find_model(desk.settings, name))}
