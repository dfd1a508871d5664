"""Commands for jobs: submit, show, watch, control."""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from tafdil.cli.context import (
    Json,
    command,
    connection,
    console,
    emit,
    hint_of,
    remark,
    show_json,
    standing,
    told,
    usage,
    warn,
)
from tafdil.cli.listing import Column, show_listing
from tafdil.cli.names import JobName, cancelled_task, find_job
from tafdil.cli.recipes import chosen_for_rows, is_rows, show_recipe
from tafdil.cli.specs import changes, data_fields, named_datasets, read_spec
from tafdil.cli.streams import is_unicode
from tafdil.cli.words import in_words, sentence
from tafdil.client import Client, Job
from tafdil.effects import evidence_lines, review_lines
from tafdil.errors import JobFailed, NotFound
from tafdil.models import Task
from tafdil.text import visible
from trainer_core.config import METHODS, joined
from trainer_core.recipes import RECIPES
from trainer_core.wording import Message, is_known, say

Changes = Annotated[list[str], typer.Option("--set", metavar="NAME=VALUE", help="A field of the spec. Repeat for more.")]
FromCheckpoint = Annotated[bool, typer.Option("--from-checkpoint", help="Start from the old job's newest checkpoint.")]
# In the order in which people look at them; the others are in `--json` and `tafdil metrics`.
_WATCHED = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "kl",
    "eval_loss",
    "eval_preference_accuracy",
    "eval_margin_accuracy",
    "eval_overall_accuracy",
)
_METRICS_EVERY_S = 3.0
_FOLLOW_EVERY_S = 1.0
# How long to wait for the checks worker.
_PATIENCE_S = 300.0


@command
def submit(
    spec_file: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC]", help="A JSON or TOML file, or a file of rows (which is uploaded); `-` reads a JSON spec."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"Sets the numbers that you do not set: {joined(RECIPES)}.", show_default=False)
    ] = None,
    method: Annotated[str | None, typer.Option(help=f"The method: {joined(METHODS)}.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to train.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Training rows: a local file (which is uploaded), a dataset's id or name, or a path on the service."
        ),
    ] = None,
    validation: Annotated[str | None, typer.Option("--eval", help="Validation rows, given in the same way.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for the job.")] = None,
    fields: Changes = [],  # noqa: B006  # typer copies it
    key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Submitting again with the same key creates no second job.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Queue nothing; report what the job would do.")] = False,
    watch_it: Annotated[
        bool, typer.Option("--watch", help="Watch the job until it ends; fail if it does not succeed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Queues a job from a file, options, or both. A recipe needs only rows: `tafdil submit rows.xlsx --recipe try`."""
    if is_rows(spec_file):
        if data:
            usage(say("cli.rows_twice", path=spec_file, other=data))
        spec_file, data = None, spec_file
    spec = read_spec(spec_file)
    given = {"recipe": recipe, "method": method, "model_name": model, "name": name}
    spec |= {field: value for field, value in given.items() if value is not None} | changes(fields)
    with connection() as client:
        spec |= data_fields(client, data, "dataset") | data_fields(client, validation, "eval_dataset")
        spec |= named_datasets(client, spec)
        if spec.get("recipe") and (chosen := chosen_for_rows(client, spec)):
            spec |= chosen
            if not as_json:
                emit(say("cli.chosen", method=str(spec.get("method")), model=str(spec["model_name"])), "dim")
        if dry_run:
            task = client.validate(spec)
            _show_dry_run((task if task.result else client.wait_task(task.id, _PATIENCE_S)).result or {}, as_json)
            return
        job = client.submit(spec, key)
        if watch_it:
            _watch(client, job, as_json)
        elif as_json:
            show_json(job)
        else:
            _changed(job, as_json)
            emit(say("cli.watch_it", command=f"tafdil watch {job.id[:8]}"), "dim")


def _show_dry_run(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(result)
        return
    plan, data = result["plan"], result["data"]
    if result.get("recipe"):
        show_recipe(result["recipe"])
    train = data["train"]
    rows = {"train": data["rows_trained_on"], "validate": data["rows_validated_on"]}
    emit(say("cli.dry_rows", **rows, steps=plan["optimizer_steps"]))
    for one in data.get("datasets", []):
        taken = say("cli.dry_dataset", name=one["name"], taken=one["rows_taken"], rows=one["rows_in_file"])
        emit(f"  {in_words(taken, sys.stdout)}")
    dropped = train["rows_dropped"] + sum(one["rows"] for one in train.get("findings", []) if one["dropped"])
    emit(say("cli.dry_cut", prompts=train["prompts_cut"], answers=train["completions_cut"], dropped=dropped))
    if result.get("stop_tokens"):
        emit(say("cli.dry_stops", tokens=[token["token"] for token in result["stop_tokens"]]))
    if "desirable_rows" in data:
        emit(say("cli.labels", wanted=data["desirable_rows"], unwanted=data["undesirable_rows"]))
    if result["memory"]:
        memory = result["memory"]
        sizes = {name: round(memory[field] / 2**30, 1) for name, field in _bounds("bytes")}
        fits = {True: "cli.dry_memory_fits", False: "cli.dry_memory_too_much", None: "cli.dry_memory"}[memory["fits"]]
        emit(say(fits, **sizes))
    if result["time"] and result["time"].get("total_seconds") is not None:
        spans = {name: _said_span(result["time"][f"total_{field}"]) for name, field in _bounds("seconds")}
        start = _said_span(result["time"]["startup_seconds"])
        emit(say("cli.dry_time", **spans, start=start, basis=result["time"]["basis"]))
    if (forecast := result.get("forecast")) and forecast["effect"]:
        emit(say("cli.dry_forecast", forecast=say(f"cli.forecast.{forecast['effect']}"), basis=forecast["basis"]))
    for warning in result["warnings"]:
        warn(warning)
    for finding in (result.get("report") or {}).get("findings", []):
        emit(sentence(finding))
    emit(say("cli.nothing_queued"), "dim")


def _bounds(unit: str) -> tuple[tuple[str, str], ...]:
    return (("about", unit), ("low", f"low_{unit}"), ("high", f"high_{unit}"))


@command
def list_(
    state: Annotated[str | None, typer.Option(help="Only queued, running, paused, succeeded, failed or cancelled.")] = None,
    method: Annotated[str | None, typer.Option(help=f"Only {joined(METHODS)}.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most jobs to list.")] = 20,
    as_json: Json = False,
) -> None:
    """Lists jobs, newest first."""
    with connection() as client:
        found = list(client.jobs(state, method, limit))
    if as_json:
        show_json(found)
        return
    if not found:
        emit(say("cli.no_such_jobs" if state or method else "cli.no_jobs"))
        return
    rows: list[tuple[str, ...]] = []
    for job in found:
        effect, done = (job.effect or "").replace("_", " "), f"{job.percent:.0f}%"
        rows.append((job.id, job.name or "", job.method, job.model_name, job.state, effect, done, _ago(job.created_at)))
    columns = [Column("job", is_whole=True), *map(Column, ("name", "method", "model", "state", "effect"))]
    columns += [Column("done", is_number=True), Column("created")]
    show_listing(columns, rows, [_STYLES.get(job.state) for job in found])


list_.__name__ = "list"
_STYLES = {"failed": "red", "running": "green", "cancelled": "dim"}


@command
def show(
    job: JobName,
    spec: Annotated[bool, typer.Option("--spec", help="Print only its spec, with every default, as JSON.")] = False,
    as_json: Json = False,
) -> None:
    """Shows a job: its state, attempts and warnings."""
    with connection() as client:
        found = find_job(client, job)
        tries = client.attempts(found.id)
        metadata = client.metadata(found.id) if found.effect else {}
    if spec or as_json:
        show_json(found.spec if spec else {**found.as_dict(), "attempts": [one.as_dict() for one in tries]})
        return
    waiting = say(f"cli.waiting.{found.waiting_for}") if found.waiting_for in ("broker", "pause", "quota") else None
    limit = say(f"limit.{found.pause_reason}") if found.pause_reason in ("time_limit", "quota") else None
    rows = [
        ("id", found.id),
        ("name", told(found.name) if found.name else None),
        ("method", found.method),
        ("model", told(found.model_name)),
        ("recipe", f"{found.recipe['name']}, version {found.recipe['version']}" if found.recipe else None),
        ("state", in_words(standing(found), sys.stdout)),
        ("waits for", in_words(waiting, sys.stdout) if waiting else None),
        ("paused", in_words(limit, sys.stdout) if limit else None),
        ("starts in", _span(found.seconds_until_start) if found.seconds_until_start is not None else None),
        ("ends in", _span(found.seconds_left) if found.seconds_left is not None else None),
        ("created", _ago(found.created_at)),
        ("took", _took(found)),
        ("checkpoint", f"step {found.checkpoint_step}" if found.checkpoint_step else None),
        ("repeats", found.rerun_of),
    ]
    for label, value in rows:
        if value is not None:
            emit(f"{label:>10}  {value}")
    for line in evidence_lines(evidence) if (evidence := metadata.get("effect_evidence")) else ():
        emit(f"{'effect':>10}  {in_words(line, sys.stdout)}")
    for line in review_lines(review) if (review := metadata.get("review")) else ():
        emit(f"{'review':>10}  {in_words(line, sys.stdout)}")
    for one in tries:
        said = {"message": one.reason, "message_code": one.reason_code, "params": one.reason_params}
        reason = f": {in_words(sentence(said), sys.stdout)}" if one.reason else ""
        emit(f"{'try ' + str(one.number):>10}  {told(one.worker)}, {one.device}, {one.outcome or 'runs'}{reason}")
    for warning in found.warnings:
        emit(f"{'warning':>10}  {in_words(sentence(warning), sys.stdout)}", "yellow")
    if found.error:
        emit(f"{'hint':>10}  {in_words(hint_of(found.error), sys.stdout)}", "red")


@command
def watch(job: JobName, as_json: Json = False) -> None:
    """Watches a job's progress and metrics until it ends. Fails if the job does not succeed."""
    with connection() as client:
        _watch(client, find_job(client, job), as_json)


def _watch(client: Client, job: Job, as_json: bool) -> None:
    try:
        _watch_to_the_end(client, job, as_json)
    except KeyboardInterrupt:
        # The user may think that the job ended with the command.
        remark(say("cli.watch_interrupted", command=f"tafdil watch {job.id[:8]}"))
        raise typer.Exit(130) from None


def _watch_to_the_end(client: Client, job: Job, as_json: bool) -> None:
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
    )
    bar = progress.add_task(told(job.name or job.id[:12]), total=100)
    live = console.is_terminal and not as_json
    seen: set[str] = set()
    last = job
    with Live(progress, console=console, refresh_per_second=4) if live else nullcontext() as screen:
        read_at = 0.0
        for last in client.watch(job.id):
            for warning in last.warnings:
                if warning["message"] not in seen and not as_json:
                    warn(warning)
                seen.add(warning["message"])
            if as_json:
                show_json(last, in_a_line=True)
            elif screen is not None:
                _advance(progress, bar, last)
                if time.monotonic() - read_at >= _METRICS_EVERY_S or last.is_over:
                    read_at = time.monotonic()
                    screen.update(Group(progress, _newest_metrics(client, job.id)))
            elif (line := in_words(standing(last), sys.stdout)) not in seen:
                seen.add(line)
                emit(line)
    if not as_json and not live:
        console.print(_newest_metrics(client, job.id))
    if last.state != "succeeded":
        raise JobFailed(last)
    if not as_json and last.effect not in (None, "changed"):
        emit(say("cli.see_why", effect=say(f"cli.effect.{last.effect}"), command=f"tafdil show {last.id[:8]}"), "yellow")
    if not as_json:
        emit(say("cli.ask_it", command=f"tafdil compare {last.id[:8]} 'ما عاصمة مصر؟'"), "dim")


def _advance(progress: Progress, bar: TaskID, job: Job) -> None:
    progress.update(bar, completed=job.percent, description=_line_of(job))


def _line_of(job: Job) -> str:
    return f"{told(job.name or job.id[:12])}  {in_words(standing(job), sys.stdout)}"


def _newest_metrics(client: Client, job_id: str) -> Table:
    series = client.metrics(job_id, only_current=True, max_points=4)
    table = Table(box=None, pad_edge=False, show_header=False)
    arrow = "→" if is_unicode(sys.stdout) else "->"
    for name in _WATCHED:
        values = [point["value"] for point in series.get(name, []) if point["value"] is not None]
        if values:
            table.add_row(name, f"{values[0]:.4g}", arrow, f"{values[-1]:.4g}")
    return table


@command
def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job is over.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="One try; default all.")] = None,
    as_json: Json = False,
) -> None:
    """Prints a run's log."""
    with connection() as client:
        found = find_job(client, job)
        printed: dict[int, int] = {}
        while True:
            # Read the state before the logs, so that the last reading includes everything printed before the end.
            now = client.job(found.id)
            for number in [attempt] if attempt else range(max(1, *printed, 0), now.attempt + 1):
                text = _log_of(client, found.id, number, must_be_there=attempt is not None and not follow)
                _print_log(number, text[printed.get(number, 0) :], number not in printed and now.attempt > 1, as_json)
                printed[number] = len(text)
            if not follow or now.is_over:
                return
            time.sleep(_FOLLOW_EVERY_S)


def _log_of(client: Client, job_id: str, attempt: int, *, must_be_there: bool) -> str:
    try:
        return client.logs(job_id, attempt)
    except NotFound:
        if must_be_there:
            raise
        return ""


def _print_log(attempt: int, text: str, with_head: bool, as_json: bool) -> None:
    if as_json and text:
        show_json({"attempt": attempt, "text": text}, in_a_line=True)
    elif not as_json:
        sys.stdout.write((f"--- attempt {attempt} ---\n" if with_head else "") + visible(text))
        sys.stdout.flush()


@command
def metrics(
    job: JobName,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these.")] = None,
    as_json: Json = False,
) -> None:
    """Prints every metric point of a job as CSV."""
    with connection() as client:
        series = client.metrics(find_job(client, job).id, names or ())
    if as_json:
        show_json(series)
        return
    print("name,attempt,step,value")
    for name, points in series.items():
        for point in points:
            print(f"{name},{point['attempt']},{point['step']},{'' if point['value'] is None else repr(point['value'])}")


def _changed(job: Job, as_json: bool) -> None:
    show_json(job) if as_json else emit(f"{job.id}  {in_words(standing(job), sys.stdout)}")


@command
def cancel(
    job: JobName,
    save_checkpoint: Annotated[bool, typer.Option("--save-checkpoint", help="Save one at the next step first.")] = False,
    as_json: Json = False,
) -> None:
    """Cancels a job, or a comparison, dry run, preview, merge or push by its full id."""
    with connection() as client:
        try:
            found = find_job(client, job)
        except NotFound:
            task = cancelled_task(client, job)
            if task is None:
                raise
            show_json(task) if as_json else emit(f"{task.id}  {in_words(_standing_of(task), sys.stdout)}")
            return
        _changed(found.cancel(save_checkpoint), as_json)


def _standing_of(task: Task) -> Message:
    kind = f"task.{task.kind}"
    # A newer service may have kinds that this client does not know.
    what = say(kind) if is_known(kind) else task.kind
    return say("cli.task_cancelled" if task.state == "cancelled" else "cli.task_ends", what=what)


@command
def pause(job: JobName, as_json: Json = False) -> None:
    """Pauses a job: it saves a checkpoint at its next step and frees its device."""
    with connection() as client:
        _changed(find_job(client, job).pause(), as_json)


@command
def resume(
    job: JobName,
    max_hours: Annotated[float | None, typer.Option("--max-hours", help="A new limit of hours, over all attempts.")] = None,
    as_json: Json = False,
) -> None:
    """Resumes a paused job exactly where it stopped."""
    with connection() as client:
        _changed(find_job(client, job).resume(max_hours), as_json)


@command
def rerun(job: JobName, from_checkpoint: FromCheckpoint = False, as_json: Json = False) -> None:
    """Queues a new job with the spec of a finished one."""
    with connection() as client:
        _changed(find_job(client, job).rerun(from_checkpoint), as_json)


@command
def clone(job: JobName, fields: Changes = [], as_json: Json = False) -> None:  # noqa: B006  # typer copies it
    """Queues a new job with the spec of another one, with changes."""
    with connection() as client:
        changed = changes(fields)
        _changed(find_job(client, job).clone(**changed | named_datasets(client, changed)), as_json)


def _said_span(seconds: float) -> Message:
    if seconds < 90:
        return say("cli.seconds", n=round(seconds))
    if seconds < 5400:
        return say("cli.minutes", n=round(seconds / 60))
    return say("cli.hours", n=round(seconds / 3600, 1))


def _span(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _ago(instant: datetime) -> str:
    return f"{_span(max(0.0, (datetime.now(UTC) - instant).total_seconds()))} ago"


def _took(job: Job) -> str | None:
    if job.started_at is None or job.finished_at is None:
        return None
    return _span((job.finished_at - job.started_at).total_seconds())


COMMANDS: Sequence[Any] = (submit, list_, show, watch, logs, metrics, cancel, pause, resume, rerun, clone)
