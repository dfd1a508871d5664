"""The tables. Instants are seconds since 1970 (UTC) by the database's clock."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite only turns INTEGER primary keys into row ids.
BigId = BigInteger().with_variant(Integer, "sqlite")


class Record(DeclarativeBase):
    """Base of all tables."""


class JobRecord(Record):
    """A job: its request, its state, and which attempt may write. Attempts are `AttemptRecord`s."""

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    tenant: Mapped[str] = mapped_column(String(64))
    name: Mapped[str | None] = mapped_column(Text)
    method: Mapped[str] = mapped_column(String(8))
    model_name: Mapped[str] = mapped_column(Text)
    dataset_id: Mapped[str | None] = mapped_column(String(32))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    """As sent."""
    resolved_spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    """With every default filled in."""
    recipe: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The recipe that set fields of `resolved_spec`, with its version, those fields and their sources; NULL without one."""

    priority: Mapped[int] = mapped_column(Integer, default=0)
    """Higher is claimed first."""
    turn: Mapped[int] = mapped_column(BigInteger)
    """Among jobs of the same priority, the lowest is claimed first. It rises by one with each job of a tenant, starting
    where the queue stands, so that tenants take turns regardless of how many jobs each submits."""
    gpu_class: Mapped[str | None] = mapped_column(String(32))
    """Which workers may claim it; NULL: any."""
    rerun_of: Mapped[str | None] = mapped_column(String(32))
    start_from: Mapped[str | None] = mapped_column(String(32))
    """The job whose newest checkpoint this one starts from."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_sha256: Mapped[str | None] = mapped_column(String(64))
    """Hash of the request that came with the key."""
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """The span of the request that submitted it, in W3C `traceparent` format."""

    state: Mapped[str] = mapped_column(String(16))
    requested: Mapped[str | None] = mapped_column(String(16))
    """What a user asked of the running attempt; a `Request`."""
    pause_reason: Mapped[str | None] = mapped_column(String(16))
    """Why it is paused or being paused, a `PauseReason`; NULL: a person asked."""
    phase: Mapped[str | None] = mapped_column(String(16))
    step: Mapped[int] = mapped_column(Integer, default=0)
    total_steps: Mapped[int | None] = mapped_column(Integer)
    seconds_left: Mapped[float | None] = mapped_column(Float)
    warnings: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSON)
    effect: Mapped[str | None] = mapped_column(String(16))
    """What the run did to its model, a `Verdict`; set when the job succeeds. NULL for jobs of earlier versions."""
    artifact_path: Mapped[str | None] = mapped_column(Text)
    """Relative to the runs directory; set when the job succeeds."""

    attempt: Mapped[int] = mapped_column(Integer, default=0)
    losses: Mapped[int] = mapped_column(Integer, default=0)
    """Workers lost since `checkpoint_step` last rose."""
    checkpoint_step: Mapped[int] = mapped_column(Integer, default=0)
    """The highest step for which any attempt saved a checkpoint."""
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[float | None] = mapped_column(Float)
    reported: Mapped[int] = mapped_column(Integer, default=0)
    """Number of stored reports of the current attempt; a report that arrives twice is stored once."""
    event_count: Mapped[int] = mapped_column(Integer, default=0)

    created_at: Mapped[float] = mapped_column(Float)
    published_at: Mapped[float | None] = mapped_column(Float)
    not_before: Mapped[float | None] = mapped_column(Float)
    """When a lost job may be claimed again; NULL: immediately."""
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)

    __table_args__ = (
        Index("jobs_tenant_number", "tenant", "number"),
        Index("jobs_tenant_state_number", "tenant", "state", "number"),
        Index("jobs_tenant_method_number", "tenant", "method", "number"),
        Index("jobs_tenant_method_state_number", "tenant", "method", "state", "number"),
        Index("jobs_queue", "state", priority.desc(), "turn", "number", "gpu_class"),
        Index("jobs_turn", "priority", "turn"),
        Index("jobs_tenant_turn", "tenant", "priority", "turn"),
        Index("jobs_finished", "finished_at"),
        Index("jobs_state_effect", "state", "effect"),
        Index("jobs_tenant_idempotency_key", "tenant", "idempotency_key", unique=True),
    )


class AttemptRecord(Record):
    """One attempt of a job on one worker, from its claim to its end."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    worker: Mapped[str] = mapped_column(Text)
    gpu_class: Mapped[str | None] = mapped_column(String(32))
    """The worker's."""
    device: Mapped[str | None] = mapped_column(String(100))
    """The GPU's unique id; NULL on a CPU."""
    started_at: Mapped[float] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    outcome: Mapped[str | None] = mapped_column(String(16))
    """The `Cause` that ended it."""
    reason: Mapped[str | None] = mapped_column(Text)
    reason_said: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The code and values of `reason`; NULL for attempts of earlier versions."""
    first_step: Mapped[int | None] = mapped_column(Integer)
    """Steps already done when training began: those of the checkpoint it resumed from."""
    last_step: Mapped[int | None] = mapped_column(Integer)
    device_report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Tokens that went through the layers in this attempt."""
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes last seen in use: on the GPU, or by the training process on a CPU."""

    __table_args__ = (
        # Two live attempts never share a GPU, even if workers disagree.
        Index(
            "attempts_live_device",
            "device",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("attempts_outcome_started", "outcome", "started_at"),
        Index("attempts_started", "started_at"),
    )


class PastAttemptRecord(Record):
    """What is kept of an attempt whose job was deleted: counters may not fall, and used hours stay used."""

    __tablename__ = "past_attempts"

    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    tenant: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[float] = mapped_column(Float)
    ended_at: Mapped[float] = mapped_column(Float)
    outcome: Mapped[str] = mapped_column(String(16))
    """The `Cause` that ended it."""
    effect: Mapped[str | None] = mapped_column(String(16))
    """The effect of its job, if this attempt completed it."""
    steps: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        Index("past_attempts_tenant_started", "tenant", "started_at"),
        Index("past_attempts_outcome_effect", "outcome", "effect"),
    )


class DispatchRecord(Record):
    """Row 1, in which dispatchers record when they last ran a round, and row 0, which is written to see whether one can."""

    __tablename__ = "dispatch"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    host: Mapped[str] = mapped_column(Text)
    round_at: Mapped[float] = mapped_column(Float)
    reap_from: Mapped[float] = mapped_column(Float)
    """No lease is revoked before this instant: after a database outage its holders may renew first."""


class SignRecord(Record):
    """The last sign of life of a worker or a dispatcher, and what it has."""

    __tablename__ = "signs_of_life"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    host: Mapped[str] = mapped_column(String(255), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    """`dispatcher`, or the queue that a worker serves: `train`, `compare`, `checks`, `exports`."""
    gpu_class: Mapped[str | None] = mapped_column(String(32))
    device: Mapped[str | None] = mapped_column(String(100))
    """The GPU on which a generation worker takes turns with runs."""
    trackers: Mapped[list[str]] = mapped_column(JSON)
    """The values of `report_to` whose packages a train worker has."""
    seen_at: Mapped[float] = mapped_column(Float)


class EventRecord(Record):
    """One thing that happened to a job; `sequence` counts from 1 for each job, without gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)


class MetricRecord(Record):
    """One metric's value at a step of an attempt; NULL means not finite or undefined."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    value: Mapped[float | None] = mapped_column(Float)
    created_at: Mapped[float] = mapped_column(Float)


class DatasetRecord(Record):
    """An uploaded, checked dataset."""

    __tablename__ = "datasets"

    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    tenant: Mapped[str] = mapped_column(String(64))
    name: Mapped[str | None] = mapped_column(Text)
    format: Mapped[str] = mapped_column(String(8))
    kind: Mapped[str] = mapped_column(String(8))
    train_rows: Mapped[int] = mapped_column(Integer)
    validation_rows: Mapped[int] = mapped_column(Integer)
    desirable_rows: Mapped[int] = mapped_column(Integer)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    reading: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """How the uploaded file was read, and what was skipped; NULL for datasets of earlier versions."""
    created_at: Mapped[float] = mapped_column(Float)

    __table_args__ = (Index("datasets_tenant_number", "tenant", "number"),)


class ReportRecord(Record):
    """Which task computes, or has computed, the report about a dataset's rows; the task's answer is the report."""

    __tablename__ = "dataset_reports"

    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    tenant: Mapped[str] = mapped_column(String(64))
    dataset_id: Mapped[str] = mapped_column(String(32))
    sha256: Mapped[str] = mapped_column(String(64))
    """Of the dataset's rows: equal rows have one report."""
    version: Mapped[int] = mapped_column(Integer)
    """Of the report."""
    model_name: Mapped[str] = mapped_column(String(200))
    """The model whose tokens it counts; empty: none."""
    task_id: Mapped[str] = mapped_column(String(32))

    __table_args__ = (
        UniqueConstraint("tenant", "sha256", "version", "model_name"),
        Index("dataset_reports_dataset", "dataset_id"),
    )


class TaskRecord(Record):
    """Work other than training, and its answer: a comparison, a dry run, a preview, a merge, a push, a report."""

    __tablename__ = "tasks"

    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    tenant: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    """A `TaskKind`."""
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16))
    turn: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """As a job's, among the tasks of one worker."""
    request_sha256: Mapped[str | None] = mapped_column(String(64))
    """Hash of everything that its answer depends on; an equal request joins it. NULL: it is joined by none."""
    requested: Mapped[str | None] = mapped_column(String(16))
    """`cancel`, if a user asked for it while it was running."""
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    losses: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[float | None] = mapped_column(Float)
    partial: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The answer so far, while it is being generated."""
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)
    published_at: Mapped[float | None] = mapped_column(Float)
    not_before: Mapped[float | None] = mapped_column(Float)
    """When a lost task may be claimed again; NULL: immediately."""
    finished_at: Mapped[float | None] = mapped_column(Float)
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """The span of the request that created it."""

    __table_args__ = (
        Index("tasks_state_number", "state", "number"),
        Index("tasks_job", "job_id", "kind", "number"),
        Index("tasks_queue", "state", "turn", "number", "kind", "tenant"),
        Index("tasks_turn", "kind", "turn"),
        Index("tasks_tenant_turn", "tenant", "kind", "turn"),
        Index("tasks_tenant_state", "tenant", "state", "request_sha256"),
    )


class TaskEndRecord(Record):
    """How many attempts of a kind of task ended in one way. Counters may not fall when a job is deleted with its tasks."""

    __tablename__ = "task_ends"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    """A `TaskKind`."""
    outcome: Mapped[str] = mapped_column(String(16), primary_key=True)
    """A `TaskEnd`."""
    count: Mapped[int] = mapped_column(BigInteger)


class ArtifactRecord(Record):
    """A file that a job left behind."""

    __tablename__ = "artifacts"

    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    tenant: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[str] = mapped_column(String(16))
    """An `ArtifactKind`."""
    name: Mapped[str] = mapped_column(Text)
    """Path below the job's directory."""
    attempt: Mapped[int | None] = mapped_column(Integer)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)

    __table_args__ = (UniqueConstraint("job_id", "name"),)


class KeyRecord(Record):
    """An API key. The key itself is shown once and never stored, only its hash and first characters."""

    __tablename__ = "api_keys"

    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    name: Mapped[str | None] = mapped_column(Text)
    tenant: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    max_priority: Mapped[int] = mapped_column(Integer)
    """The highest priority that its jobs may have."""
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)
    last_used_at: Mapped[float | None] = mapped_column(Float)
    """To a minute."""
