"""Responses: the records as clients see them."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, field_serializer

from api.language import in_language, worded_tree, worded_warning
from api.sentences import ErrorFields, RecipeFields, WarningFields, WordedFields
from jobs.access import Scope
from jobs.artifact_service import Removed
from jobs.artifacts import ArtifactKind
from jobs.curves import CurvePoint
from jobs.records import ArtifactRecord, AttemptRecord, JobRecord, Record, TaskRecord
from jobs.service import QueuePlace
from jobs.spec import Sent
from jobs.states import Cause, JobState, PauseReason, Phase, Request, TaskKind, TaskState
from jobs.tenancy import WaitingFor
from trainer_core.config import Method
from trainer_core.effect import Verdict


def instant(seconds: float | None) -> datetime | None:
    """An instant in UTC from seconds since 1970."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def columns_of(record: Record, names: Iterable[str]) -> dict[str, Any]:
    """Columns of a record as the API shows them, with instants as times in UTC."""
    values = {name: getattr(record, name) for name in names}
    return {name: instant(value) if name.endswith("_at") else value for name, value in values.items()}


class Stored(BaseModel):
    """The fields of a record that keep their column names."""

    @classmethod
    def of(cls, record: Record, **more: Any) -> Self:
        return cls(**columns_of(record, cls.model_fields.keys() - more.keys()), **more)


class StoredTask(Stored):
    """Fields of every task."""

    id: str
    state: TaskState
    waiting_for: WaitingFor | None = Field(
        description="What a queued task waits for, as for a job; a comparison also for the `gpu`, which runs hold that "
        "go first. Null unless queued."
    )
    requested: Request | None = Field(description="`cancel` while a running task is being cancelled.")
    attempt: int = Field(description="How many times a worker took it; more than 1 after a worker or its process was lost.")
    result: dict[str, Any] | None
    error: ErrorFields | None
    created_at: datetime

    @classmethod
    def of(cls, record: Record, **more: Any) -> Self:
        waiting_for = more.pop("waiting_for", None)
        assert isinstance(record, TaskRecord)
        if record.state != TaskState.QUEUED:
            waiting_for = None
        elif (record.not_before or 0) > time.time():
            waiting_for = "pause"
        return super().of(record, waiting_for=waiting_for, **more)


class Job(BaseModel):
    """A job and its state."""

    id: str
    name: str | None
    method: Method
    model_name: str
    dataset_id: str | None
    state: JobState
    phase: Phase | None = Field(description="The current phase of a running job.")
    step: int = Field(description="Optimizer steps done.")
    total_steps: int | None
    percent: float = Field(description="Share of the steps done, 0 to 100.")
    seconds_left: float | None = Field(description="Estimated seconds for the remaining training steps; null if unknown.")
    priority: int
    gpu_class: str | None
    queue_position: int | None = Field(description="1: next to be claimed; null unless queued.")
    seconds_until_start: float | None = Field(description="Estimated seconds until a queued job starts; null if unknown.")
    waiting_for: WaitingFor | None = Field(
        description="What a queued job waits for: a free `worker`; the `broker`, which is unavailable; or the end of the "
        "`pause` before a retry; or the `quota` of training hours, until older hours no longer count. The job is stored, "
        "and starts when the broker is back."
    )
    requested: Request | None = Field(description="A pending request to the running attempt.")
    pause_reason: PauseReason | None = Field(
        description="Why a job is paused or being paused: on `request`; its `time_limit` is reached (`max_hours`); or the "
        "`quota` of training hours is used up. Null otherwise."
    )
    attempt: int
    checkpoint_step: int = Field(description="The newest checkpoint's step; 0 without one.")
    rerun_of: str | None = Field(description="The job that this one runs again.")
    start_from: str | None = Field(description="The job whose newest checkpoint this one started from.")
    warnings: list[WarningFields]
    effect: Verdict | None = Field(
        description="What the run did to the model, measured on held-out rows if there are any. The event `effect` and "
        "the metadata's `effect_evidence` have the numbers. Null unless the job succeeded, and for jobs of earlier versions."
    )
    error: ErrorFields | None
    spec: dict[str, Any] = Field(description="The spec with every default filled in.")
    recipe: RecipeFields | None = Field(description="The recipe that set fields of the spec; null if it names none.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: JobRecord, place: QueuePlace | None = None) -> "Job":
        done = 100.0 if job.state == JobState.SUCCEEDED else 100.0 * job.step / (job.total_steps or 1)
        is_pausing = job.state == JobState.PAUSED or job.requested == Request.PAUSE
        created_at = instant(job.created_at)
        assert created_at is not None
        return cls(
            **{name: getattr(job, name) for name in _SAME_NAMES},
            percent=round(min(done, 100.0), 2),
            queue_position=place.position if place else None,
            seconds_until_start=place.seconds_until_start if place else None,
            waiting_for=place.waiting_for if place else None,
            pause_reason=PauseReason(job.pause_reason or PauseReason.REQUEST) if is_pausing else None,
            spec=job.resolved_spec,
            created_at=created_at,
            started_at=instant(job.started_at),
            finished_at=instant(job.finished_at),
        )


_SAME_NAMES = (
    "id",
    "name",
    "method",
    "model_name",
    "dataset_id",
    "state",
    "phase",
    "step",
    "total_steps",
    "seconds_left",
    "priority",
    "gpu_class",
    "requested",
    "attempt",
    "checkpoint_step",
    "rerun_of",
    "start_from",
    "warnings",
    "effect",
    "error",
    "recipe",
)


class JobPage(BaseModel):
    """Jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None = Field(description="Send as `cursor` for the next page; null on the last.")


class CancelOptions(Sent):
    """How to cancel."""

    save_checkpoint: bool = Field(False, description="Save a checkpoint at the next step boundary first.")


class ResumeOptions(Sent):
    """How to resume a job."""

    max_hours: float | None = Field(
        None, gt=0, le=100_000, description="The job's new limit of hours, over all its attempts; `null` keeps the old one."
    )


class RerunOptions(Sent):
    """How to run a job again."""

    from_checkpoint: bool = Field(False, description="Start from the old job's newest checkpoint.")


class DeviceReport(BaseModel):
    """The device's state before and after an attempt."""

    name: str
    memory_before_bytes: int | None = Field(description="Memory in use before the training process started; null on a CPU.")
    memory_after_bytes: int | None = Field(description="Memory in use after it ended.")
    processes_left: list[int] = Field(description="Processes of the attempt that were still alive; normally none.")


class Attempt(BaseModel):
    """One attempt of a job on one worker."""

    number: int
    worker: str
    device: str = Field(description="The GPU's unique id, or `cpu`.")
    device_report: DeviceReport | None
    started_at: datetime
    ended_at: datetime | None
    outcome: Cause | None = Field(description="What ended it; null while it runs.")
    reason: str | None = Field(description="Why, in the language requested by `Accept-Language`.")
    reason_code: str | None = Field(description="An identifier of that sentence; null for attempts of earlier versions.")
    reason_params: dict[str, Any] | None = Field(description="The values in it, by name.")
    first_step: int | None = Field(description="Steps already done when it began to train; null if it did not get that far.")
    last_step: int | None = Field(description="Steps done at its last report.")
    tokens: int = Field(description="Tokens that went through the layers; 0 on TRL's own path, which does not count them.")
    memory_bytes: int | None = Field(description="Memory last seen in use: on the GPU, or by the process on a CPU.")

    @classmethod
    def of(cls, record: AttemptRecord) -> "Attempt":
        started_at = instant(record.started_at)
        assert started_at is not None
        said = record.reason_said or {"code": None, "params": None}
        same = ("number", "worker", "outcome", "first_step", "device_report", "tokens", "memory_bytes")
        return cls(
            **{name: getattr(record, name) for name in same},
            reason=in_language({**said, "reason": record.reason}, "reason", "code")["reason"],
            reason_code=said["code"],
            reason_params=said["params"],
            device=record.device or "cpu",
            started_at=started_at,
            ended_at=instant(record.ended_at),
            last_step=None if record.first_step is None else max(record.first_step, record.last_step or 0),
        )


class AttemptList(BaseModel):
    """Every attempt of a job, oldest first."""

    job_id: str
    attempts: list[Attempt]


class MetricPoint(BaseModel):
    attempt: int
    step: int
    value: float | None = Field(description="Null if the value was not finite or undefined.")


class Metrics(BaseModel):
    """Series by metric name."""

    job_id: str
    series: dict[str, list[MetricPoint]]

    @classmethod
    def of(cls, job_id: str, points: list[CurvePoint]) -> "Metrics":
        series: dict[str, list[MetricPoint]] = {}
        for point in points:
            series.setdefault(point.name, []).append(MetricPoint(attempt=point.attempt, step=point.step, value=point.value))
        return cls(job_id=job_id, series=series)


class Task(StoredTask):
    """Work requested from a worker; `result` is set once the state is `succeeded`."""

    kind: TaskKind
    job_id: str | None

    # Without a type of what it returns, the description of `result` stays that of the field.
    @field_serializer("result", mode="wrap")
    def _worded(self, result: Any, serialized: SerializerFunctionWrapHandler):  # pyright: ignore
        found = serialized(result)
        if self.kind is TaskKind.VALIDATE and isinstance(result, dict):
            # A dry run whose result no class describes.
            found["warnings"] = [worded_warning(each) for each in found.get("warnings", [])]
            if "report" in found:
                found["report"] = worded_tree(found["report"])
        if self.kind is TaskKind.REPORT:
            return worded_tree(found)
        return found


class Token(BaseModel):
    """A token of a rendered row."""

    id: int
    text: str = Field(description="Empty for a token that ends within a letter; the one that completes it has the letter.")
    trained: bool = Field(description="Whether this token counts towards the loss.")


class RenderedRow(BaseModel):
    """A row as the model sees it."""

    row: int | str | None = Field(description="Its line (JSONL) or number; with several datasets `name:line`.")
    label: bool | None = Field(description="Of KTO's rows.")
    prompt: list[Token]
    answers: dict[str, list[Token]] = Field(description="`completion`, or `chosen` and `rejected`.")
    dropped_because: str | None = Field(
        None,
        description="Why a run would drop this row: `answers_equal`, `answer_empty` or `prompt_lost`; null if it would not.",
    )


class StopToken(BaseModel):
    """A token at which answers end."""

    id: int
    token: str
    named_by: list[str] = Field(description="Where it comes from: `template`, `tokenizer`, `generation_config`.")


class DryRunPlan(BaseModel):
    """The steps of a run."""

    optimizer_steps: int
    batches_an_epoch: int
    rows_a_step: int
    evaluations: int
    tokens_an_epoch: int = Field(description="Tokens that pass through the layers.")
    learning_rate: float = Field(description="After the cap.")


class EffectForecast(BaseModel):
    """What the run will probably do to the model, from its learning rates alone."""

    effect: Verdict | None = Field(
        description="Null if it cannot be forecast, as with `adapter_name` or a few LoRA modules."
    )
    learning_rate_sum: float = Field(description="Sum of the learning rates of all steps, after the cap.")
    lora_scaling: float = Field(
        description="LoRA's factor on that sum: `lora_alpha / lora_r`, or `lora_alpha / sqrt(lora_r)` with `use_rslora`; 1 "
        "if all weights train."
    )
    hardly_below: float = Field(description="Below this, sum times scaling hardly changes the model.")
    collapsed_above: float = Field(description="Above this, sum times scaling breaks the model.")
    basis: str = Field(description="The runs that the bounds come from.")


class MemoryEstimate(BaseModel):
    """Memory of the training process at its peak, in bytes."""

    bytes: int
    low_bytes: int
    high_bytes: int
    parts: dict[str, int] = Field(description="Memory by use. Reduce the largest part first.")
    free_bytes: int | None = Field(description="Free memory where it would run; null if unknown.")
    fits: bool | None
    precision: str
    gradient_checkpointing: bool
    weights: int = Field(description="Parameters of the model.")


class TimeEstimate(BaseModel):
    """Seconds of a run, from its claim by a worker to its end. The queue does not count."""

    flops: float
    machine: str
    startup_seconds: float | None = Field(
        None, description="To start the process and to load the model: as in earlier runs of this model, or else from cold."
    )
    seconds: float | None = Field(description="Of the steps and evaluations.")
    low_seconds: float | None = None
    high_seconds: float | None = None
    total_seconds: float | None = Field(None, description="The sum of the two.")
    total_low_seconds: float | None = None
    total_high_seconds: float | None = None
    basis: str = Field(description="The source of the speed: earlier runs of this model, or the device.")


class DryRunResult(BaseModel):
    """What a run would do."""

    spec: dict[str, Any] = Field(description="With every default filled in.")
    recipe: RecipeFields | None = Field(None, description="The recipe that set fields of the spec; null if it names none.")
    data: dict[str, Any] = Field(
        description="Rows and tokens, numbers of the rows cut and dropped, findings, KTO's labels and weights; with several "
        "`datasets`, what each gives."
    )
    lengths: list[dict[str, int]] = Field(description="Training rows by tokens: `up_to` is an upper bound, `rows` a count.")
    plan: DryRunPlan
    forecast: EffectForecast | None = Field(None, description="Null in dry runs of earlier versions.")
    warnings: list[WarningFields]
    memory: MemoryEstimate | None
    time: TimeEstimate | None
    stop_tokens: list[StopToken] = Field([], description="Tokens that end a turn, in training rows and in generation.")
    samples: list[RenderedRow]
    report: WordedFields | None = Field(
        None,
        description="What the training rows could teach instead: `findings` and `shortcuts` as in a dataset's report, and "
        "`tokens` of the model, from a sample of the rows. Null in dry runs of earlier versions.",
    )


class DryRun(Task):
    """A dry run."""

    result: DryRunResult | None  # pyright: ignore[reportIncompatibleVariableOverride]


class PreviewResult(BaseModel):
    """Rows as the model sees them."""

    rows: list[RenderedRow]


class Preview(Task):
    """A preview of a dataset."""

    result: PreviewResult | None  # pyright: ignore[reportIncompatibleVariableOverride]


class Artifact(BaseModel):
    """A file that a job left behind."""

    id: str
    kind: ArtifactKind
    name: str = Field(description="Its path below the job's directory.")
    attempt: int | None
    size_bytes: int
    sha256: str
    href: str = Field(description="Where to download it.")
    created_at: datetime

    @classmethod
    def of(cls, record: ArtifactRecord) -> "Artifact":
        href = f"/v1/jobs/{record.job_id}/artifacts/{record.id}"
        return cls(**columns_of(record, cls.model_fields.keys() - {"href"}), href=href)


class ArtifactList(BaseModel):
    """The files of a job, by kind and name."""

    job_id: str
    artifacts: list[Artifact]


class Removal(BaseModel):
    """What was deleted, and what stays."""

    job_id: str
    removed: list[Artifact]
    kept: list[Artifact]
    freed_bytes: int

    @classmethod
    def of(cls, removed: Removed, job_id: str) -> "Removal":
        gone, kept = ([Artifact.of(file) for file in files] for files in (removed.files, removed.kept))
        return cls(job_id=job_id, removed=gone, kept=kept, freed_bytes=removed.freed_bytes)


class Key(Stored):
    """An API key, without the secret itself."""

    id: str
    name: str | None
    tenant: str
    scopes: list[Scope]
    max_priority: int
    prefix: str = Field(description="The first characters of the key.")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To about a minute.")


class NewKey(Key):
    """A new key. The secret itself is not stored and cannot be shown again."""

    key: str


class KeyList(BaseModel):
    """Keys, newest first."""

    keys: list[Key]


class Comparison(StoredTask):
    """A comparison; `result` is set once the state is `succeeded`.

    It has both responses, the `proof` of which weights gave them, and the `dtype` in which they were computed, from the
    base model's config.json.
    """

    job_id: str
    request: dict[str, Any]


class ComparisonPage(BaseModel):
    """Comparisons, newest first."""

    comparisons: list[Comparison]
    next_cursor: str | None
