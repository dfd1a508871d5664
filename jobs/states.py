"""A job's states, and every transition with its cause. `docs/states.md` draws them for users."""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
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
    REFERENCE = "reference"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"


class Request(StrEnum):
    """What a user asked of a running job and its worker has not done yet."""

    PAUSE = "pause"
    CANCEL_SAVING = "cancel_saving"
    """Cancel after a checkpoint at the next step boundary."""
    CANCEL = "cancel"


class TaskKind(StrEnum):
    """Work other than training, each piece claimed, leased and answered as a `TaskRecord`."""

    COMPARE = "compare"
    VALIDATE = "validate"
    PREVIEW = "preview"
    MERGE = "merge"
    PUSH = "push"


class TaskState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Cause(StrEnum):
    """Why a state changed; also the type of the event that reports it."""

    CLAIM = "claimed"
    FINISH = "succeeded"
    FAIL = "failed"
    CANCEL = "cancelled"
    PAUSE = "paused"
    RESUME = "resumed"
    PREEMPT = "preempted"
    LOSE = "worker_lost"


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: dict[Cause, tuple[frozenset[JobState], JobState]] = {
    Cause.CLAIM: (frozenset({JobState.QUEUED}), JobState.RUNNING),
    Cause.FINISH: (frozenset({JobState.RUNNING}), JobState.SUCCEEDED),
    Cause.FAIL: (frozenset({JobState.RUNNING}), JobState.FAILED),
    Cause.CANCEL: (frozenset({JobState.QUEUED, JobState.RUNNING, JobState.PAUSED}), JobState.CANCELLED),
    Cause.PAUSE: (frozenset({JobState.QUEUED, JobState.RUNNING}), JobState.PAUSED),
    Cause.RESUME: (frozenset({JobState.PAUSED}), JobState.QUEUED),
    Cause.PREEMPT: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    Cause.LOSE: (frozenset({JobState.RUNNING}), JobState.QUEUED),
}

# The requests that a later one replaces: a cancel overrides a pause, and a plain cancel one that waits for a checkpoint.
REPLACES: dict[Request, frozenset[Request]] = {
    Request.PAUSE: frozenset(),
    Request.CANCEL_SAVING: frozenset({Request.PAUSE}),
    Request.CANCEL: frozenset({Request.PAUSE, Request.CANCEL_SAVING}),
}
