"""`tafdil demo`: three Arabic preference jobs on the small shipped model, from upload to comparison."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tafdil.client import Client, Job
from tafdil.errors import StackError
from tafdil.local_stack import SHIPPED_DIR
from trainer_core.config import SETTINGS, SETTINGS_OF

MODEL = "tafdil/tiny-arabic-qwen-2"
# The model is too small to gain from a second thread.
VARIABLES = {"OMP_NUM_THREADS": "1"}
PROMPTS = ("هل تعرف اسم عاصمة المغرب؟", "بتعرف عكس شجاع؟", "أريد أن أعرف ناتج 8 + 5.")
_SHARED = {
    "model_name": MODEL,
    "per_device_eval_batch_size": 32,
    "gradient_checkpointing": False,
    "logging_steps": 5,
    "eval_steps": 100,
}
SPECS: dict[str, dict[str, Any]] = {
    each.method_name: {"method": each.method_name, **each.sample_run(), **_SHARED} for each in SETTINGS if each.headline
}


def run(client: Client, console: Console, watch: Callable[[], None]) -> list[dict[str, Any]]:
    """Uploads, trains, compares, prints and returns the answers. Raises `StackError` if a job does not succeed."""
    console.print("Uploading the sample preference data (formal and everyday Arabic) ...")
    data = SHIPPED_DIR / "data"
    uploaded = {
        name: client.upload_dataset(data / f"{name}.jsonl")["id"] for name in ("kto_train", "pairs_train", "pairs_held_out")
    }
    console.print(
        f"Training {MODEL} with KTO, IPO and CPO. These jobs lift the learning-rate cap (learning_rate_cap: null): "
        "the safe default would learn nothing in a minute."
    )
    jobs: dict[str, Job] = {}
    for method, spec in SPECS.items():
        rows = "kto_train" if SETTINGS_OF[method].rows == "labels" else "pairs_train"
        named = {"dataset_id": uploaded[rows], "eval_dataset_id": uploaded["pairs_held_out"]}
        jobs[method] = client.submit({**spec, **named, "name": f"demo {method}"})
    jobs = _follow(client, console, jobs, watch)
    for method, job in jobs.items():
        if job["state"] != "succeeded":
            raise StackError(f"the {method} job {job['state']}: {(job['error'] or {}).get('message')}")
    results = [_result(client, method, job) for method, job in jobs.items()]
    console.print(_table(results))
    answers = _compare(client, console, jobs)
    return [{**result, "answers": answers[result["method"]]} for result in results]


def _title(method: str) -> str:
    return SETTINGS_OF[method].title


def _follow(client: Client, console: Console, jobs: dict[str, Job], watch: Callable[[], None]) -> dict[str, Job]:
    columns = (TextColumn("{task.description:>4}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {method: progress.add_task(_title(method), total=100, note="queued", start=False) for method in jobs}
        told: dict[str, str] = {}
        while True:
            watch()
            for method in jobs:
                job = jobs[method] = client.job(jobs[method]["id"])
                note = job.describe()
                if job["state"] != "queued":
                    progress.start_task(bars[method])
                progress.update(bars[method], completed=job["percent"], note=note)
                if job.is_over:
                    progress.stop_task(bars[method])
                if not console.is_terminal and told.get(method) != note:
                    told[method] = note
                    console.print(f"{_title(method):>4}: {note}")
            if all(job.is_over for job in jobs.values()):
                return jobs
            time.sleep(0.5)


def _result(client: Client, method: str, job: Job) -> dict[str, Any]:
    series = client.metrics(job.id)
    loss, margin, preference = (series[f"eval_{name}"] for name in ("loss", "margin_accuracy", "preference_accuracy"))
    assert job.started_at
    assert job.finished_at
    return {
        "method": method,
        "job_id": job.id,
        "loss_before": loss[0]["value"],
        "loss_after": loss[-1]["value"],
        "margin_accuracy": margin[-1]["value"],
        "accuracy_before": preference[0]["value"],
        "accuracy_after": preference[-1]["value"],
        "effect": job.effect,
        "seconds": (job.finished_at - job.started_at).total_seconds(),
    }


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(title="Held-out pairs: facts and phrasings that no training row contains")
    columns = {
        "loss before": "loss_before",
        "loss after": "loss_after",
        "margin accuracy": "margin_accuracy",
        "accuracy before": "accuracy_before",
        "accuracy after": "accuracy_after",
    }
    table.add_column("method")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("effect")
    table.add_column("seconds", justify="right")
    for result in results:
        numbers = [f"{result[field]:.3f}" for field in columns.values()]
        effect = (result["effect"] or "").replace("_", " ")
        table.add_row(_title(result["method"]), *numbers, effect, f"{result['seconds']:.0f}")
    table.caption = (
        "margin accuracy: pairs whose chosen answer gained more on the reference than the rejected one, 0.5 before the "
        "training by definition; accuracy: preference accuracy, pairs whose chosen answer is likelier per token"
    )
    return table


def _compare(client: Client, console: Console, jobs: dict[str, Job]) -> dict[str, list[dict[str, Any]]]:
    answers: dict[str, list[dict[str, Any]]] = {method: [] for method in jobs}
    for prompt in PROMPTS:
        console.print(f"\n{prompt}", style="bold", markup=False, highlight=False)
        for i, (method, job) in enumerate(jobs.items()):
            result = client.compare(job.id, prompt, max_length=48).result
            if result is None:
                raise StackError("the generation worker did not answer in a minute; see its log")
            answers[method].append(result)
            if i == 0:
                console.print(f"  reference: {result['reference_model_response']}", markup=False, highlight=False)
            console.print(f"  {_title(method):>9}: {result['trained_model_response']}", markup=False, highlight=False)
    return answers
