"""What the API answers: the records as clients see them."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from jobs.records import ComparisonRecord, DatasetRecord, JobRecord, MetricRecord
from jobs.states import ComparisonState, JobState, Phase
from trainer_core.config import Method


def instant(seconds: float | None) -> datetime | None:
    """An instant in UTC from seconds since 1970."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class Job(BaseModel):
    """A job and where it stands."""

    id: str
    name: str | None
    method: Method
    model_name: str
    dataset_id: str | None
    state: JobState
    phase: Phase | None = Field(description="What a running job is doing.")
    step: int = Field(description="Optimizer steps done.")
    total_steps: int | None
    percent: float = Field(description="Share of the steps done, 0 to 100.")
    seconds_left: float | None = Field(description="Estimate for the training steps; null when not known.")
    queue_position: int | None = Field(description="1: next to be claimed; null unless queued.")
    attempt: int
    cancel_requested: bool
    warnings: list[dict[str, Any]]
    error: dict[str, Any] | None
    spec: dict[str, Any] = Field(description="The spec with every default filled in.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: JobRecord, queue_position: int | None = None) -> "Job":
        done = 100.0 if job.state == JobState.SUCCEEDED else 100.0 * job.step / (job.total_steps or 1)
        created_at = instant(job.created_at)
        assert created_at is not None
        return cls(
            **{name: getattr(job, name) for name in _SAME_NAMES},
            percent=round(min(done, 100.0), 2),
            queue_position=queue_position,
            cancel_requested=job.cancel_requested_at is not None,
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
    "attempt",
    "warnings",
    "error",
)


class JobPage(BaseModel):
    """Jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None = Field(description="Send as `cursor` for the next page; null on the last.")


class MetricPoint(BaseModel):
    attempt: int
    step: int
    value: float | None = Field(description="Null where the value was not finite or not defined.")


class Metrics(BaseModel):
    """Series by metric name."""

    job_id: str
    series: dict[str, list[MetricPoint]]

    @classmethod
    def of(cls, job_id: str, points: list[MetricRecord]) -> "Metrics":
        series: dict[str, list[MetricPoint]] = {}
        for point in points:
            series.setdefault(point.name, []).append(MetricPoint(attempt=point.attempt, step=point.step, value=point.value))
        return cls(job_id=job_id, series=series)


class Dataset(BaseModel):
    """An uploaded dataset."""

    id: str
    name: str | None
    format: str = Field(description="`jsonl`, `json` or `parquet`.")
    kind: str = Field(description="`kto` (prompt, completion, label) or `pairs` (prompt, chosen, rejected).")
    train_rows: int
    validation_rows: int
    desirable_rows: int = Field(description="Training rows with label true; 0 for pairs.")
    size_bytes: int
    sha256: str
    created_at: datetime

    @classmethod
    def of(cls, record: DatasetRecord) -> "Dataset":
        created_at = instant(record.created_at)
        assert created_at is not None
        names = [name for name in cls.model_fields if name != "created_at"]
        return cls(**{name: getattr(record, name) for name in names}, created_at=created_at)


class DatasetPage(BaseModel):
    """Datasets, newest first."""

    datasets: list[Dataset]
    next_cursor: str | None


class Comparison(BaseModel):
    """A comparison; `result` is there once the state is `succeeded`."""

    id: str
    job_id: str
    state: ComparisonState
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None

    @classmethod
    def of(cls, record: ComparisonRecord) -> "Comparison":
        return cls(**{name: getattr(record, name) for name in cls.model_fields})
