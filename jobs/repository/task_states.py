"""States of many tasks in one query, for requests that wait."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.records import TaskRecord
from jobs.states import TaskState


def of(session: Session, ids: Sequence[str]) -> dict[str, TaskState]:
    """The states of the tasks that exist, by id."""
    found = session.execute(select(TaskRecord.id, TaskRecord.state).where(TaskRecord.id.in_(ids)))
    return {row.id: TaskState(row.state) for row in found}
