"""A job's states, and every way from one to another with its cause.

          claim                      finish
queued ──────────► running ──────────────────► succeeded
  ▲  │               │  │ └──── fail ────────► failed
  │  └─ cancel ──►   │  └────── cancel ──────► cancelled
  └── preempt, lose ◄┘
"""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in FINAL


class Phase(StrEnum):
    """What a running attempt is doing."""

    PREPARING = "preparing"
    LOADING = "loading"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"


class ComparisonState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Cause(StrEnum):
    """Why a state changed; the type of the event that tells of it."""

    CLAIM = "claimed"
    FINISH = "succeeded"
    FAIL = "failed"
    CANCEL = "cancelled"
    PREEMPT = "preempted"
    LOSE = "worker_lost"


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: dict[Cause, tuple[frozenset[JobState], JobState]] = {
    Cause.CLAIM: (frozenset({JobState.QUEUED}), JobState.RUNNING),
    Cause.FINISH: (frozenset({JobState.RUNNING}), JobState.SUCCEEDED),
    Cause.FAIL: (frozenset({JobState.RUNNING}), JobState.FAILED),
    Cause.CANCEL: (frozenset({JobState.QUEUED, JobState.RUNNING}), JobState.CANCELLED),
    Cause.PREEMPT: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    Cause.LOSE: (frozenset({JobState.RUNNING}), JobState.QUEUED),
}
