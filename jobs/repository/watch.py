"""Counts over all tenants, for the service's own gauges."""

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import AttemptRecord, JobRecord, PastAttemptRecord, TaskEndRecord, TaskRecord
from jobs.repository import signs
from jobs.states import Cause, JobState, PauseReason, TaskState


@dataclass(frozen=True)
class Queue:
    """Queued jobs of one class: how many, and how long the oldest has waited."""

    depth: int
    oldest_s: float


@dataclass(frozen=True)
class Running:
    """A live attempt."""

    worker: str
    device: str
    lease_age_s: float
    """Seconds since its lease was renewed."""
    memory_bytes: int | None


@dataclass(frozen=True)
class Numbers:
    """The state of the service at an instant."""

    jobs: dict[str, int]
    paused: dict[str, int]
    """Paused jobs by `PauseReason`."""
    silence_s: dict[str, float]
    """Seconds since the last sign of life of each part; of several with one name, the longest."""
    queues: dict[str, Queue]
    tasks: dict[tuple[str, str], int]
    task_ends: dict[tuple[str, str], int]
    """Ended attempts of tasks by kind and `TaskEnd`."""
    running: list[Running]
    steps: int
    """Optimizer steps of all attempts. Here and below, deleted jobs count too."""
    tokens: int
    attempts: dict[str, int]
    """Ended attempts by outcome."""
    effects: dict[str | None, int]
    """Succeeded jobs by their effect on the model; None for jobs of earlier versions."""


def numbers(session: Session, lease_s: float) -> Numbers:
    """Reads all of them."""
    states = session.execute(select(JobRecord.state, func.count()).group_by(JobRecord.state))
    queued = session.execute(
        select(JobRecord.gpu_class, func.count(), func.max(db_now() - JobRecord.created_at))
        .where(JobRecord.state == JobState.QUEUED)
        .group_by(JobRecord.gpu_class)
    )
    waiting = select(TaskRecord.kind, TaskRecord.state, func.count()).where(
        TaskRecord.state.in_([TaskState.QUEUED, TaskState.RUNNING])
    )
    live = select(AttemptRecord, JobRecord.lease_expires_at, db_now()).join(JobRecord, JobRecord.id == AttemptRecord.job_id)
    steps = AttemptRecord.last_step - AttemptRecord.first_step
    ended = select(AttemptRecord.outcome, func.count()).where(AttemptRecord.ended_at.is_not(None))
    sums = func.sum(PastAttemptRecord.steps), func.sum(PastAttemptRecord.tokens)
    past = select(PastAttemptRecord.outcome, func.count(), *sums)
    gone = session.execute(past.group_by(PastAttemptRecord.outcome)).all()
    totals = session.execute(select(func.sum(steps), func.sum(AttemptRecord.tokens))).one()
    why = func.coalesce(JobRecord.pause_reason, PauseReason.REQUEST.value)
    paused = select(why, func.count()).where(JobRecord.state == JobState.PAUSED).group_by(JobRecord.pause_reason)
    outcomes = Counter({str(row[0]): row[1] for row in session.execute(ended.group_by(AttemptRecord.outcome))})
    return Numbers(
        jobs={state.value: 0 for state in JobState} | {row[0]: row[1] for row in states},
        paused={reason.value: 0 for reason in PauseReason} | {row[0]: row[1] for row in session.execute(paused)},
        silence_s={part.name: part.silent_s for part in sorted(signs.parts(session), key=lambda part: part.silent_s)},
        queues={row[0] or "any": Queue(row[1], max(0.0, row[2] or 0.0)) for row in queued},
        tasks={(row[0], row[1]): row[2] for row in session.execute(waiting.group_by(TaskRecord.kind, TaskRecord.state))},
        task_ends={(row.kind, row.outcome): row.count for row in session.scalars(select(TaskEndRecord))},
        running=[
            Running(a.worker, a.device or "cpu", max(0.0, lease_s - ((expires_at or now) - now)), a.memory_bytes)
            for a, expires_at, now in session.execute(live.where(AttemptRecord.ended_at.is_(None)))
        ],
        steps=int(totals[0] or 0) + sum(int(row[2]) for row in gone),
        tokens=int(totals[1] or 0) + sum(int(row[3]) for row in gone),
        attempts=dict(outcomes + Counter({row[0]: row[1] for row in gone})),
        effects=effects(session),
    )


def effects(session: Session) -> dict[str | None, int]:
    """Succeeded jobs by their effect on the model, including deleted jobs."""
    kept = select(JobRecord.effect, func.count()).where(JobRecord.state == JobState.SUCCEEDED)
    gone = select(PastAttemptRecord.effect, func.count()).where(PastAttemptRecord.outcome == Cause.FINISH.value)
    found = Counter[str | None]()
    for query in (kept.group_by(JobRecord.effect), gone.group_by(PastAttemptRecord.effect)):
        for row in session.execute(query):
            found[row[0]] += row[1]
    return dict(found)


def oldest_expired_lease_s(session: Session) -> float:
    """How long ago the most overdue lease expired, in seconds; 0 if none has."""
    overdue = session.scalar(
        select(func.max(db_now() - JobRecord.lease_expires_at)).where(JobRecord.state == JobState.RUNNING)
    )
    return max(0.0, overdue or 0.0)
