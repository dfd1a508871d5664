"""Answers of the checks worker (`worker.check_worker`): dry runs, previews and reports about datasets. Only a tokenizer, on
the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.places import data_places, dataset_file, find_model, model_places
from jobs.repository import attempts, kept_jobs, tasks
from jobs.spec import library_config
from jobs.states import TaskKind
from worker import gpu
from worker.desk import Answer, Desk

if TYPE_CHECKING:
    from trainer_core.data_report import Vocabulary
    from trainer_core.dry_run import Machine

# Number of a model's latest runs from which to estimate the speed of the next.
_RUNS_ASKED = 10


def _validate(desk: Desk) -> dict[str, Any]:
    from trainer_core.dry_run import dry_run

    spec = desk.task.request["spec"]
    models = model_places(desk.settings, spec)
    found = dry_run(library_config(spec, data_places(desk.settings, spec)), _machine(desk, spec), locate=models.__getitem__)
    # Tasks stored by an earlier version have no recipe.
    return {"spec": spec, "recipe": desk.task.request.get("recipe"), **found}


def _machine(desk: Desk, spec: dict[str, Any]) -> "Machine":
    """The machine the job would run on, judged by earlier attempts on workers of its class; otherwise this machine."""
    from trainer_core.dry_run import Machine
    from trainer_core.machines import this_machine

    with desk.database.reading() as session:
        last = attempts.last_of_class(session, spec["gpu_class"])
        speeds = kept_jobs.last_speeds(session, desk.task.tenant, spec["method"], spec["model_name"], _RUNS_ASKED)
        starts = kept_jobs.last_starts(session, desk.task.tenant, spec["model_name"], _RUNS_ASKED)
    here = replace(this_machine(), startup_seconds=_usual_start(starts))
    if last is None or last.device is None:
        on_gpu, name = False, here.name
    else:
        on_gpu, name = True, str((last.device_report or {}).get("name") or last.device)
    known = sorted(speed["flops_per_s"] for speed in speeds if speed["on_gpu"] == on_gpu)
    if known:
        free = None if on_gpu else here.free_bytes
        return Machine(on_gpu, name, known[len(known) // 2], True, free, here.startup_seconds)
    if not on_gpu:
        return here
    return Machine(on_gpu, name, gpu.typical_flops_per_s(name), startup_seconds=here.startup_seconds)


def _usual_start(starts: list[dict[str, Any]]) -> float | None:
    """The median seconds from a claim to training. An evaluation before the first step counts as training."""
    # Events stored by an earlier version lack the whole time.
    timed = [each for each in starts if "since_claim_s" in each]
    found = sorted(each["since_claim_s"] - each["seconds"].get("evaluating", 0.0) for each in timed)
    return found[len(found) // 2] if found else None


def _preview(desk: Desk) -> dict[str, Any]:
    from trainer_core.dry_run import preview
    from trainer_core.rows import peek_rows

    request = desk.task.request
    path = dataset_file(desk.settings, request["dataset_id"])
    rows = peek_rows(path, request["first_row"], request["rows"])
    config = library_config(request["spec"], {"dataset_path": str(path)})
    return {"rows": preview(rows, config, locate=lambda name: find_model(desk.settings, name))}


def _report(desk: Desk) -> dict[str, Any]:
    from trainer_core.data_report import report_of_file

    name = desk.task.request["model_name"]
    vocabulary = _vocabulary(desk, name) if name else None
    return report_of_file(dataset_file(desk.settings, _dataset_of(desk)), vocabulary)


def _dataset_of(desk: Desk) -> str:
    """The dataset of a report: another one with the same rows if the first was deleted meanwhile."""
    with desk.database.reading() as session:
        task = tasks.get(session, desk.task.id)
    return (task or desk.task).request["dataset_id"]


def _vocabulary(desk: Desk, name: str) -> "Vocabulary":
    """The vocabulary of a model, by the tokenizer's file alone where there is one."""
    from trainer_core.data_report import Vocabulary, vocabulary_in

    place = find_model(desk.settings, name)
    if found := vocabulary_in(Path(place), name):
        return found
    from transformers import AutoTokenizer

    from trainer_core.loading import loading

    with loading(place):
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    return Vocabulary(name, count)


ANSWERS: Mapping[TaskKind, Answer] = {
    TaskKind.VALIDATE: _validate,
    TaskKind.PREVIEW: _preview,
    TaskKind.REPORT: _report,
}
