"""Which task has the report about a dataset's rows."""

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from jobs.records import DatasetRecord, ReportRecord, TaskRecord


def task_of(session: Session, dataset: DatasetRecord, version: int, model_name: str) -> TaskRecord | None:
    """The task with the report about the same rows of the same tenant, whichever dataset it was asked for."""
    query = (
        select(TaskRecord)
        .join(ReportRecord, ReportRecord.task_id == TaskRecord.id)
        .where(
            ReportRecord.tenant == dataset.tenant,
            ReportRecord.sha256 == dataset.sha256,
            ReportRecord.version == version,
            ReportRecord.model_name == model_name,
        )
    )
    return session.scalar(query)


def keep(session: Session, dataset: DatasetRecord, version: int, model_name: str, task_id: str) -> None:
    """Names the task that will have the report, instead of one that failed."""
    session.execute(
        delete(ReportRecord).where(
            ReportRecord.tenant == dataset.tenant,
            ReportRecord.sha256 == dataset.sha256,
            ReportRecord.version == version,
            ReportRecord.model_name == model_name,
        )
    )
    session.add(
        ReportRecord(
            tenant=dataset.tenant,
            dataset_id=dataset.id,
            sha256=dataset.sha256,
            version=version,
            model_name=model_name,
            task_id=task_id,
        )
    )


def forget(session: Session, dataset: DatasetRecord) -> None:
    """Deletes the reports that were asked for a dataset, with their tasks: they quote its rows.

    If the tenant has the same rows in another dataset, the reports become that one's, and tasks that are not done read its
    file.
    """
    of_dataset = ReportRecord.dataset_id == dataset.id
    asked = select(ReportRecord.task_id).where(of_dataset)
    heir = session.scalar(
        select(DatasetRecord.id)
        .where(
            DatasetRecord.tenant == dataset.tenant, DatasetRecord.sha256 == dataset.sha256, DatasetRecord.id != dataset.id
        )
        .order_by(DatasetRecord.number)
        .limit(1)
    )
    if heir is None:
        session.execute(delete(TaskRecord).where(TaskRecord.id.in_(asked)).execution_options(synchronize_session=False))
        session.execute(delete(ReportRecord).where(of_dataset))
        return
    for task in session.scalars(select(TaskRecord).where(TaskRecord.id.in_(asked))):
        task.request = {**task.request, "dataset_id": heir}
    session.execute(update(ReportRecord).where(of_dataset).values(dataset_id=heir))
