"""Metric points: one value per metric, attempt and step."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jobs.curves import CurvePoint
from jobs.database import db_now
from jobs.records import MetricRecord


def add(session: Session, job_id: str, attempt: int, step: int, values: dict[str, float | None]) -> None:
    """Adds points; existing ones stay unchanged. The caller holds the attempt's fence."""
    now = session.scalar(select(db_now()))
    rows: list[dict[str, Any]] = [
        {"job_id": job_id, "name": name[:100], "attempt": attempt, "step": step, "value": value, "created_at": now}
        for name, value in values.items()
    ]
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    if rows:
        session.execute(dialect.insert(MetricRecord).values(rows).on_conflict_do_nothing())


def series(
    session: Session,
    job_id: str,
    names: Sequence[str] | None = None,
    *,
    first_step: int | None = None,
    last_step: int | None = None,
) -> list[CurvePoint]:
    """A job's points ordered by name, attempt and step, from `first_step` to `last_step` inclusive."""
    columns = MetricRecord.name, MetricRecord.attempt, MetricRecord.step, MetricRecord.value
    query = select(*columns).where(MetricRecord.job_id == job_id)
    if names:
        query = query.where(MetricRecord.name.in_(names))
    if first_step is not None:
        query = query.where(MetricRecord.step >= first_step)
    if last_step is not None:
        query = query.where(MetricRecord.step <= last_step)
    rows = session.execute(query.order_by(MetricRecord.name, MetricRecord.attempt, MetricRecord.step))
    return [CurvePoint._make(row) for row in rows]
