"""What the service does with jobs, datasets and comparisons: checks, one transaction each, then a wake-up."""

import hashlib
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import NotFound, StateConflict, TooLarge
from jobs.places import attempt_dir, data_file, dataset_file, find_model
from jobs.queue import JobQueue
from jobs.records import ComparisonRecord, DatasetRecord, JobRecord, MetricRecord
from jobs.repository import comparisons, datasets, jobs, metrics
from jobs.settings import Settings
from jobs.spec import CPOJobSpec, IPOJobSpec, KTOJobSpec, PlainText
from jobs.states import JobState
from trainer_core.rows import Kind, RowChecker, check_file, peek_kind, require_kind

Found = TypeVar("Found")
AnySpec = KTOJobSpec | IPOJobSpec | CPOJobSpec
# A file up to this size is checked whole when a job is submitted; a larger one by its first rows, the rest by the worker.
_CHECKED_AT_SUBMIT_BYTES = 16 * 2**20
# What the metadata file of a method takes from the spec; known before the training is.
_METADATA_FIELDS = (
    "beta",
    "desirable_weight",
    "undesirable_weight",
    "cpo_alpha",
    "loss_type",
    "label_smoothing",
    "max_prompt_length",
    "max_length",
    "use_ref_model",
)


class ComparisonRequest(BaseModel):
    """What to ask both models, and how they answer."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"prompt": "هل تعرف اسم عاصمة المغرب؟", "max_length": 64}]},
    )

    prompt: PlainText = Field(min_length=1, max_length=20_000, description="The user's text.")
    max_length: int = Field(256, ge=1, le=4096, description="Most new tokens of an answer.")
    temperature: float = Field(0.0, ge=0, le=5, description="0 is greedy; above 0 samples.")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of probability to sample from.")
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Seed of sampling; drawn and told when absent.")


class JobService:
    """The service behind the API. Its methods raise `TafdilError`s and return records that no session holds any more."""

    def __init__(self, database: Database, queue: JobQueue, settings: Settings) -> None:
        self.database, self.queue, self.settings = database, queue, settings

    # -- jobs

    def submit(self, spec: AnySpec, sent: dict[str, Any]) -> JobRecord:
        """Stores a job and wakes a worker.

        Raises:
            ModelNotFound, DataInvalid, NotFound: what the spec names is not there or does not fit the method.
        """
        for name in (spec.model_name, spec.ref_model_name, spec.adapter_name):
            if name:
                find_model(self.settings, name)
        with self.database.transaction() as session:
            self._check_data(session, spec, "dataset")
            self._check_data(session, spec, "eval_dataset")
            fields = {
                "name": spec.name,
                "method": spec.method,
                "model_name": spec.model_name,
                "dataset_id": spec.dataset_id,
                "spec": sent,
                "resolved_spec": spec.model_dump(mode="json"),
            }
            job_id = jobs.insert(session, fields)
        self.queue.publish_training(job_id)
        self.queue.nudge(job_id)
        return self.job(job_id)

    def _check_data(self, session: Session, spec: AnySpec, field: str) -> None:
        dataset_id: str | None = getattr(spec, f"{field}_id")
        path: str | None = getattr(spec, f"{field}_path")
        if dataset_id:
            record = datasets.get(session, dataset_id)
            if record is None:
                raise NotFound(f"there is no dataset {dataset_id}; upload it with POST /v1/datasets")
            require_kind(spec.method, "kto" if record.kind == "kto" else "pairs")
            dataset_file(self.settings, dataset_id)
        elif path:
            file = data_file(self.settings, path, f"{field}_path")
            whole = file.stat().st_size <= _CHECKED_AT_SUBMIT_BYTES
            kind: Kind | None = check_file(file).kind if whole else peek_kind(file)
            require_kind(spec.method, kind)

    def job(self, job_id: str) -> JobRecord:
        with self.database.transaction() as session:
            return _found(jobs.get(session, job_id), "job", job_id)

    def jobs(
        self, limit: int, cursor: str | None = None, state: str | None = None, method: str | None = None
    ) -> tuple[list[JobRecord], dict[str, int]]:
        """A page of jobs, newest first, beyond the job `cursor`, with the queue positions of the queued ones."""
        with self.database.transaction() as session:
            before = _found(jobs.get(session, cursor), "job", cursor).number if cursor else None
            found = list(jobs.page(session, limit, before, state, method))
            return found, jobs.queue_positions(session, found)

    def queue_position(self, job: JobRecord) -> int | None:
        """1 for the job that is claimed next; None unless the job is queued."""
        with self.database.transaction() as session:
            return jobs.queue_positions(session, [job]).get(job.id)

    def metrics(self, job_id: str, names: list[str] | None = None) -> list[MetricRecord]:
        with self.database.transaction() as session:
            _found(jobs.get(session, job_id), "job", job_id)
            return list(metrics.series(session, job_id, names))

    def metadata(self, job_id: str) -> dict[str, Any]:
        """The metadata file of the trained model and the job's specs; before the end what is known, `complete` False."""
        job = self.job(job_id)
        spec = job.resolved_spec
        known = {
            "training_method": job.method,
            "ref_model_name": spec["ref_model_name"] or job.model_name,
            **{name: spec[name] for name in _METADATA_FIELDS if name in spec},
            "training_completed_at": None,
        }
        return {
            **(job.metadata_ or known),
            "complete": job.metadata_ is not None,
            "job_id": job.id,
            "sent_spec": job.spec,
            "resolved_spec": spec,
        }

    def log_files(self, job_id: str, attempt: int | None = None) -> list[tuple[int, Path]]:
        """The log of each attempt that has one, or of the one asked for. Raises `NotFound` when that has none."""
        job = self.job(job_id)
        attempts = [attempt] if attempt else range(1, job.attempt + 1)
        files = [(number, attempt_dir(self.settings, job_id, number) / "log.txt") for number in attempts]
        existing = [(number, path) for number, path in files if path.is_file()]
        if attempt and not existing:
            raise NotFound(f"job {job_id} has no log of attempt {attempt}")
        return existing

    def oldest_expired_lease_s(self) -> float:
        with self.database.transaction() as session:
            return jobs.oldest_expired_lease_s(session)

    def cancel(self, job_id: str) -> JobRecord:
        """Cancels a queued job at once, or asks a running one's worker to stop. Raises `StateConflict` otherwise."""
        with self.database.transaction() as session:
            changed = jobs.cancel_queued(session, job_id) or jobs.request_cancel(session, job_id)
            job = _found(jobs.get(session, job_id), "job", job_id)
            if not changed:
                state = "being cancelled already" if job.state == JobState.RUNNING else f"{job.state} already"
                raise StateConflict(f"job {job_id} is {state}")
        self.queue.nudge(job_id)
        return job

    # -- comparisons

    def compare(self, job_id: str, request: ComparisonRequest) -> ComparisonRecord:
        """Stores a comparison and wakes a generation worker. Raises `StateConflict` unless the job succeeded."""
        with self.database.transaction() as session:
            job = _found(jobs.get(session, job_id), "job", job_id)
            if job.state != JobState.SUCCEEDED:
                raise StateConflict(f"job {job_id} is {job.state}; only a succeeded job can be compared")
            comparison_id = comparisons.insert(session, job_id, request.model_dump())
        self.queue.publish_comparison(comparison_id)
        return self.comparison(job_id, comparison_id)

    def comparison(self, job_id: str, comparison_id: str) -> ComparisonRecord:
        with self.database.transaction() as session:
            record = comparisons.get(session, comparison_id)
            if record is not None and record.job_id != job_id:
                record = None
            return _found(record, "comparison", comparison_id)

    # -- datasets

    def dataset(self, dataset_id: str) -> DatasetRecord:
        with self.database.transaction() as session:
            return _found(datasets.get(session, dataset_id), "dataset", dataset_id)

    def datasets(self, limit: int, cursor: str | None = None) -> list[DatasetRecord]:
        """A page of datasets, newest first, beyond the dataset `cursor`."""
        with self.database.transaction() as session:
            before = _found(datasets.get(session, cursor), "dataset", cursor).number if cursor else None
            return list(datasets.page(session, limit, before))

    def begin_upload(self, name: str | None) -> "DatasetUpload":
        """Starts to receive a dataset."""
        return DatasetUpload(self.settings, name, self._store_dataset)

    def _store_dataset(self, fields: dict[str, Any]) -> DatasetRecord:
        with self.database.transaction() as session:
            datasets.insert(session, fields)
        return self.dataset(fields["id"])


class DatasetUpload:
    """Bytes of a dataset on their way to disk, checked while they arrive. `finish` or `abort` ends it.

    The file gets its name only when every row is good, so a broken upload leaves nothing.
    """

    def __init__(self, settings: Settings, name: str | None, store: Callable[[dict[str, Any]], DatasetRecord]) -> None:
        self._settings, self._name, self._store = settings, name, store
        self._id = uuid.uuid4().hex
        self._path: Path = settings.datasets_dir / f".{self._id}.part"
        self._file = self._path.open("xb")
        self._checker = RowChecker(path=self._path)
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def write(self, data: bytes) -> None:
        """Takes the next bytes. Raises `TooLarge`, or `DataInvalid` when the rows cannot be read on."""
        self._size_bytes += len(data)
        if self._size_bytes > self._settings.max_upload_bytes:
            raise TooLarge(f"the dataset is larger than {self._settings.max_upload_bytes:,} bytes")
        self._digest.update(data)
        self._file.write(data)
        self._checker.feed(data)

    def finish(self) -> DatasetRecord:
        """Stores the dataset. Raises `DataInvalid` with every broken row (up to a limit)."""
        self._file.flush()
        report = self._checker.close()
        os.fsync(self._file.fileno())
        self._file.close()
        final = self._settings.datasets_dir / f"{self._id}.rows"
        self._path.rename(final)
        try:
            return self._store(
                {
                    "id": self._id,
                    "name": self._name,
                    "format": report.format,
                    "kind": report.kind,
                    "train_rows": report.train_rows,
                    "validation_rows": report.validation_rows,
                    "desirable_rows": report.desirable_rows,
                    "size_bytes": self._size_bytes,
                    "sha256": self._digest.hexdigest(),
                }
            )
        except BaseException:
            final.unlink(missing_ok=True)
            raise

    def abort(self) -> None:
        """Removes what arrived. Does nothing after `finish`."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._path.unlink()


def _found(record: Found | None, kind: str, subject_id: str) -> Found:
    if record is None:
        raise NotFound(f"there is no {kind} {subject_id}")
    return record
