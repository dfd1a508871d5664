"""What must hold of every job, whatever happened: its stored story is legal, and what really happened agrees with it."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.records import AttemptRecord, EventRecord, JobRecord, MetricRecord
from jobs.states import TRANSITIONS, Cause, JobState
from tests.rig import history
from tests.rig.trainer import state_after

CAUSES = {cause.value: cause for cause in Cause}


def violations(
    session: Session, lines: list[dict[str, Any]], *, is_settled: bool = True, without: Collection[str] = ()
) -> dict[str, list[str]]:
    """Everything that is wrong, by kind; all lists are empty when nothing is.

    Args:
        lines: the history, see `tests.rig.history`.
        is_settled: nothing runs any more, so every job must be over.
        without: jobs that the rig's training did not run.
    """
    found: dict[str, list[str]] = {name: [] for name in ("lost", "double_run", "double_published", "stuck", "illegal")}
    events: defaultdict[str, list[EventRecord]] = defaultdict(list)
    for event in session.scalars(select(EventRecord).order_by(EventRecord.job_id, EventRecord.sequence)):
        events[event.job_id].append(event)
    jobs = {job.id: job for job in session.scalars(select(JobRecord)) if job.id not in without}
    for line in lines:
        if line["what"] == "accepted" and line["job"] not in jobs:
            found["lost"].append(f"{line['job']} was accepted and is not there")
    for job in jobs.values():
        found["illegal"] += [f"{job.id}: {text}" for text in story_violations(job, events[job.id], session)]
        if is_settled and not JobState(job.state).is_final:
            found["stuck"].append(f"{job.id} is {job.state}, attempt {job.attempt}")
        finished = [line for line in lines if line.get("job") == job.id and line["what"] == "finished"]
        published = [event for event in events[job.id] if event.type == Cause.FINISH.value]
        if len(published) > 1:
            found["double_published"].append(job.id)
        if job.state == JobState.SUCCEEDED:
            steps = job.resolved_spec["max_steps"]
            if (job.metadata_ or {}).get("state") != state_after(steps):
                found["lost"].append(f"{job.id}: the result is not that of {steps} steps")
            if not finished:
                found["lost"].append(f"{job.id}: no training finished")
    found["double_run"] = [f"{job}: attempts {one} and {other}" for job, one, other in history.overlaps(lines)]
    return found


def story_violations(job: JobRecord, events: list[EventRecord], session: Session) -> list[str]:
    """What is wrong with a job's events, attempts and metrics."""
    wrong = _replayed(job, events)
    if [event.sequence for event in events] != list(range(1, len(events) + 1)):
        wrong.append("its events have gaps")
    if len(events) != job.event_count:
        wrong.append(f"{len(events)} events, but {job.event_count} counted")
    tries = session.scalars(select(AttemptRecord).where(AttemptRecord.job_id == job.id).order_by(AttemptRecord.number)).all()
    if [each.number for each in tries] != list(range(1, job.attempt + 1)):
        wrong.append(f"attempts {[each.number for each in tries]}, but {job.attempt} claims")
    ends = _ends_of_attempts(events)
    if [each.outcome for each in tries if each.outcome] != ends:
        wrong.append(f"attempts ended by {[each.outcome for each in tries]}, but the events say {ends}")
    live = [each.number for each in tries if each.ended_at is None]
    if live != ([job.attempt] if job.state == JobState.RUNNING else []):
        wrong.append(f"live attempts {live} while {job.state}")
    if (job.lease_token is not None) != (job.state == JobState.RUNNING):
        wrong.append(f"a lease while {job.state}")
    told = [(event.data["attempt"], event.data["step"]) for event in events if event.type == "metrics"]
    if len(told) != len(set(told)):
        wrong.append("metrics told twice")
    points = session.execute(select(MetricRecord.attempt, MetricRecord.step).where(MetricRecord.job_id == job.id)).all()
    if {(point.attempt, point.step) for point in points} != set(told):
        wrong.append("metric points and events differ")
    return wrong


def _replayed(job: JobRecord, events: list[EventRecord]) -> list[str]:
    """Walks the state machine along a job's events."""
    wrong: list[str] = []
    state, attempt = None, 0
    for event in events:
        if event.type == "queued":
            state = JobState.QUEUED
        if event.type not in CAUSES:
            continue
        sources, target = TRANSITIONS[CAUSES[event.type]]
        if state not in sources:
            wrong.append(f"{event.type} while {state}")
        state = target
        told = event.data.get("attempt", attempt)
        if told != attempt + (CAUSES[event.type] is Cause.CLAIM):
            wrong.append(f"{event.type} of attempt {told} after attempt {attempt}")
        attempt = told
    if state != job.state:
        wrong.append(f"its events end at {state}, but it is {job.state}")
    return wrong


def _ends_of_attempts(events: list[EventRecord]) -> list[str]:
    """The causes that led out of `running`."""
    found, is_running = [], False
    for event in events:
        if event.type in CAUSES:
            if is_running:
                found.append(event.type)
            is_running = CAUSES[event.type] is Cause.CLAIM
    return found
