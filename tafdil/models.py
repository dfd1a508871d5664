"""The service's answers as typed objects. Fields can also be read like `job["state"]`. Unknown fields are kept."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict

from tafdil import notebook
from tafdil.effects import EFFECTS

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
# The largest integer that the service stores: a bound that nobody meets.
_LARGEST = 2**31 - 1
JobState = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]


class Model(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError as error:
            raise KeyError(name) from error

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dictionary."""
        return getattr(self, name, default)

    def as_dict(self) -> dict[str, Any]:
        """The JSON that the service sent, with times as text."""
        return self.model_dump(mode="json")


class JobFields(Model):
    """A snapshot of a job."""

    id: str
    name: str | None = None
    method: str
    model_name: str
    dataset_id: str | None = None
    state: JobState
    phase: str | None = None
    step: int = 0
    total_steps: int | None = None
    percent: float = 0.0
    seconds_left: float | None = None
    priority: int = 0
    gpu_class: str | None = None
    queue_position: int | None = None
    seconds_until_start: float | None = None
    waiting_for: str | None = None
    requested: str | None = None
    pause_reason: str | None = None
    attempt: int = 0
    checkpoint_step: int = 0
    rerun_of: str | None = None
    start_from: str | None = None
    warnings: list[dict[str, Any]] = []
    effect: str | None = None
    error: dict[str, Any] | None = None
    spec: dict[str, Any] = {}
    recipe: dict[str, Any] | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        """Whether the job has ended for good."""
        return self.state in FINAL_STATES

    def describe(self) -> str:
        """The job's state in words."""
        if self.state == "queued":
            return f"queued, number {self.queue_position}" if self.queue_position else "queued"
        if self.state == "running":
            steps = f", step {self.step} of {self.total_steps}" if self.total_steps else ""
            asked = f" ({self.requested} asked for)" if self.requested else ""
            return f"{self.phase or 'running'}{steps}{asked}"
        if self.state == "failed" and self.error:
            return f"failed: {self.error['message']}"
        return f"{self.state}; {EFFECTS.get(self.effect, self.effect)}" if self.effect else self.state

    def _repr_html_(self) -> str:
        return notebook.job_html(self.as_dict(), self.describe())


class MetricPoint(TypedDict):
    """A metric's value at a step of an attempt; None if it was not finite or undefined."""

    attempt: int
    step: int
    value: float | None


class Event(Model):
    """Something that happened to a job, or part of an answer."""

    id: int | None = None
    event: str
    data: dict[str, Any]


class Attempt(Model):
    """One attempt of a job on one worker."""

    number: int
    worker: str
    device: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None
    reason: str | None = None
    reason_code: str | None = None
    reason_params: dict[str, Any] | None = None
    first_step: int | None = None
    last_step: int | None = None


class Reading(TypedDict, total=False):
    """Options for reading a file of rows."""

    map: Mapping[str, str] | None
    """The file's column or key for each field, such as `{"prompt": "question"}`."""
    encoding: str | None
    """The encoding of a text file that is not Unicode, such as `cp1256`."""
    sheet: str | None
    """The sheet to read in a workbook with several."""
    threshold: float | None
    """The lowest score of a good answer, for answers with scores."""
    on_invalid: Literal["refuse", "skip"] | None
    """`refuse` a file with invalid rows, or `skip` these rows."""


class FileReading(Model):
    """How the service read a file. All fields are None for datasets of earlier versions."""

    file_kind: str | None = None
    encoding: str | None = None
    layout: str | None = None
    mapping: dict[str, str] | None = None
    unused: list[str] | None = None
    skipped_rows: int | None = None
    warnings: list[dict[str, Any]] | None = None


class Dataset(FileReading):
    """An uploaded dataset."""

    id: str
    name: str | None = None
    format: str
    kind: Literal["kto", "pairs"]
    train_rows: int
    validation_rows: int
    desirable_rows: int
    size_bytes: int
    sha256: str
    source_sha256: str | None = None
    options: dict[str, Any] | None = None
    created_at: datetime

    def _repr_html_(self) -> str:
        return notebook.table_html([("dataset", self.name or self.id), *self.as_dict().items()])


class DatasetCheck(FileReading):
    """What an upload of a file would report; `error` is the reason for a refusal."""

    valid: bool
    converted: bool = False
    error: dict[str, Any] | None = None
    kind: str | None = None
    columns: list[str]
    train_rows: int
    validation_rows: int
    desirable_rows: int
    error_count: int
    rows: list[dict[str, Any]]
    conversations: list[dict[str, Any]] = []
    cells: dict[str, list[str]] = {}


class Asked(Model):
    """What was asked of a job's models."""

    id: str
    job_id: str
    state: str
    waiting_for: str | None = None
    request: dict[str, Any]
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    created_at: datetime


class Comparison(Asked):
    """A question to a trained model and its reference.

    Once done, `result` has the answers, the proof, and the `dtype` in which both were computed, such as `bfloat16`.
    """

    def _repr_html_(self) -> str:
        return notebook.comparison_html(self.as_dict())


class HeldOut(Asked):
    """A comparison over prompts that the run did not train on.

    Once done, `result` has the counts `better`, `ties`, `worse` and `broken`, the `share` with its interval, and `answers`.
    """


class Task(Model):
    """Work requested from a worker; `result` is None until it is done."""

    id: str
    kind: str
    job_id: str | None = None
    state: str
    waiting_for: str | None = None
    requested: str | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    created_at: datetime


class Artifact(Model):
    """A file that a job left behind."""

    id: str
    kind: str
    name: str
    attempt: int | None = None
    size_bytes: int
    sha256: str
    href: str
    created_at: datetime


class Removal(Model):
    """What was deleted, and what stays."""

    job_id: str
    removed: list[Artifact]
    kept: list[Artifact]
    freed_bytes: int


class MethodField(Model):
    """A field of a method's job spec. `label` and `help` are by language, `en` and `ar`."""

    name: str
    types: list[str]
    items: list[str] = []
    choices: list[str] = []
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    exclusive_maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    nullable: bool = False
    required: bool = False
    default: Any = None
    unit: str | None = None
    is_main: bool = False
    label: dict[str, str] = {}
    help: dict[str, str] = {}

    def describe(self) -> str:
        """The allowed values in words."""
        marks = (("≥", self.minimum), (">", self.exclusive_minimum), ("≤", self.maximum), ("<", self.exclusive_maximum))
        bounds = [f"{mark} {bound:g}" for mark, bound in marks if bound is not None and bound < _LARGEST]
        kinds = [each for each in self.types if not (each == "string" and self.choices)]
        kinds += ["null"] if self.nullable else []
        return ", ".join([" or ".join([*kinds, *self.choices]), *bounds, *([self.unit] if self.unit else [])])


class Method(Model):
    """A preference method, with every field of its job spec. `description` is by language, `en` and `ar`."""

    name: str
    title: str
    full_name: str
    paper: str
    description: dict[str, str]
    rows: Literal["labels", "pairs"]
    dataset_kinds: list[str]
    loss_needs_reference: bool
    reward: str
    headline: bool
    example: dict[str, Any]
    fields: list[MethodField]


class Key(Model):
    """An API key. `key`, the key itself, is set only in the answer that created it."""

    id: str
    name: str | None = None
    tenant: str
    scopes: list[str]
    max_priority: int
    prefix: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    key: str | None = None
