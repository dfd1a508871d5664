"""Files that jobs left behind."""

import uuid
from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.database import db_now
from jobs.records import ArtifactRecord, JobRecord


def keep(
    session: Session, tenant: str, job_id: str, files: Collection[ArtifactFile], attempts: Collection[int]
) -> list[str]:
    """Replaces a job's list of files: new and changed files get a new id, and missing ones are dropped.

    Args:
        attempts: the attempts whose files were listed. Files of other attempts, on other machines, stay as they are, and so
            do merged weights, which no attempt writes.

    Returns:
        The names of the dropped files.
    """
    known = {record.name: record for record in of_job(session, job_id)}
    now = session.scalar(select(db_now()))
    for file in files:
        record = known.pop(file.name, None)
        if record is not None and record.sha256 == file.sha256:
            continue
        if record is not None:
            session.delete(record)
            session.flush()
        session.add(_record(tenant, job_id, file, now))
    dropped = [record for record in known.values() if record.attempt in attempts]
    for record in dropped:
        session.delete(record)
    return [record.name for record in dropped]


def add(session: Session, tenant: str, job_id: str, files: Collection[ArtifactFile]) -> None:
    """Adds files to a job."""
    now = session.scalar(select(db_now()))
    session.add_all([_record(tenant, job_id, file, now) for file in files])


def of_job(session: Session, job_id: str) -> Sequence[ArtifactRecord]:
    """All files of a job, by kind and name."""
    query = select(ArtifactRecord).where(ArtifactRecord.job_id == job_id)
    return session.scalars(query.order_by(ArtifactRecord.kind, ArtifactRecord.name)).all()


def jobs_with(session: Session, kind: ArtifactKind, age_s: float, limit: int) -> list[tuple[str, str]]:
    """Ids and tenants of jobs that ended at least `age_s` seconds ago and still have files of a kind, oldest first."""
    has_files = (
        select(ArtifactRecord.number).where(ArtifactRecord.job_id == JobRecord.id, ArtifactRecord.kind == kind).exists()
    )
    query = select(JobRecord.id, JobRecord.tenant).where(JobRecord.finished_at < db_now() - age_s, has_files)
    return [(row.id, row.tenant) for row in session.execute(query.order_by(JobRecord.finished_at).limit(limit))]


def owned(session: Session, tenant: str, job_id: str, artifact_id: str) -> ArtifactRecord | None:
    """A file of one of the tenant's jobs."""
    query = select(ArtifactRecord).where(
        ArtifactRecord.id == artifact_id, ArtifactRecord.job_id == job_id, ArtifactRecord.tenant == tenant
    )
    return session.scalar(query)


def remove(session: Session, job_id: str, ids: Collection[str]) -> None:
    for record in of_job(session, job_id):
        if record.id in ids:
            session.delete(record)
    session.flush()


def _record(tenant: str, job_id: str, file: ArtifactFile, now: float | None) -> ArtifactRecord:
    return ArtifactRecord(
        id=uuid.uuid4().hex,
        tenant=tenant,
        job_id=job_id,
        kind=file.kind,
        name=file.name,
        attempt=file.attempt,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        created_at=now,
    )
