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


class PauseReason(StrEnum):
    """Why a job is paused, or is being paused."""

    REQUEST = "request"
    TIME_LIMIT = "time_limit"
    """It has run for `max_hours`."""
    QUOTA = "quota"
    """Its tenant's training hours are used up."""


class TaskKind(StrEnum):
    """Work other than training, each piece claimed, leased and answered as a `TaskRecord`.

    A new kind also needs a line in `ANSWERED_BY`, and its function in `ANSWERS` of that worker's module.
    """

    COMPARE = "compare"
    HELD_OUT = "held_out"
    """A comparison over many held-out prompts."""
    VALIDATE = "validate"
    PREVIEW = "preview"
    REPORT = "report"
    MERGE = "merge"
    PUSH = "push"


class TaskWorker(StrEnum):
    """Who answers tasks; also the names of their queues."""

    COMPARE = "compare"
    CHECKS = "checks"
    EXPORTS = "exports"

    @property
    def kinds(self) -> tuple[TaskKind, ...]:
        """The kinds that wait in its queue."""
        return tuple(kind for kind, worker in ANSWERED_BY.items() if worker is self)


ANSWERED_BY: dict[TaskKind, TaskWorker] = {
    TaskKind.COMPARE: TaskWorker.COMPARE,
    TaskKind.HELD_OUT: TaskWorker.COMPARE,
    TaskKind.VALIDATE: TaskWorker.CHECKS,
    TaskKind.PREVIEW: TaskWorker.CHECKS,
    TaskKind.REPORT: TaskWorker.CHECKS,
    TaskKind.MERGE: TaskWorker.EXPORTS,
    TaskKind.PUSH: TaskWorker.EXPORTS,
}


BACKGROUND = frozenset({TaskKind.REPORT})
"""Nobody waits for these at a screen: other tasks go first, also while one of the same tenant runs."""


class TaskState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (TaskState.QUEUED, TaskState.RUNNING)


class TaskEnd(StrEnum):
    """How an attempt of a task ended, for the metrics."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    """Killed at its time limit."""
    OOM = "oom_host"
    """Killed at its memory limit, or by the kernel while it held most of the memory."""
    LOST = "lost"
    """Its process died, hung or lost its lease; it was queued again."""
    POISONED = "poisoned"
    """Lost once too often."""
    RELEASED = "released"
    """Its worker was shut down; it was queued again."""


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
