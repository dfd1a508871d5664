"""Lists, serves and deletes the files that jobs leave behind."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import BinaryIO, Literal

from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from jobs.artifacts import ArtifactKind
from jobs.errors import NotFound, StateConflict
from jobs.records import ArtifactRecord, JobRecord, TaskRecord
from jobs.repository import artifacts, kept_jobs, tasks
from jobs.spec import REPOSITORY, Sent
from jobs.states import JobState, TaskKind
from jobs.storage import Storage
from jobs.tenancy import TenantService, found
from trainer_core.wording import say

# What merges, pushes and comparisons read.
_READ_BY_TASKS = {ArtifactKind.MODEL, ArtifactKind.MERGED}


class PushRequest(Sent):
    """What to push to the hub."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "qwen-arabic-kto"}]})

    name: str = Field(
        pattern=REPOSITORY,
        description="The repository, without the account. For tenants other than `default`, the job's id is added.",
    )
    kind: Literal["model", "merged"] = Field("model", description="The trained files as they are, or the merged weights.")
    private: bool = Field(True, description="Whether a newly created repository is private.")


@dataclass(frozen=True)
class Removed:
    """What was deleted, and how much space that freed."""

    files: list[ArtifactRecord]
    kept: list[ArtifactRecord]

    @property
    def freed_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class ArtifactService(TenantService):
    """Files of jobs."""

    def of_job(self, job_id: str) -> list[ArtifactRecord]:
        """Every file that a job has left behind so far, by kind and name."""
        with self.database.reading() as session:
            self.own_job(session, job_id)
            return list(artifacts.of_job(session, job_id))

    def file(self, job_id: str, artifact_id: str) -> tuple[ArtifactRecord, BinaryIO, int]:
        """An open file and its size. Raises `NotFound`, also if its bytes are gone."""
        with self.database.reading() as session:
            record = found(artifacts.owned(session, self.tenant, job_id, artifact_id), "artifact", artifact_id)
        return record, *Storage(self.settings).open(job_id, record.name)

    def remove(self, job_id: str, kinds: Collection[ArtifactKind]) -> Removed:
        """Deletes a job's files of the given kinds. The job itself and its metrics stay.

        Raises:
            StateConflict: the job is not over and may need them, or a merge, push or comparison is using them.
        """
        storage = Storage(self.settings)
        # Found before the check for running merges, so that nothing here is of one that begins later.
        merged = storage.merged(job_id) if ArtifactKind.MERGED in kinds else set[str]()
        with self.database.transaction() as session:
            self._must_be_over(session, job_id, kinds)
            files = list(artifacts.of_job(session, job_id))
            removed = Removed([f for f in files if f.kind in kinds], [f for f in files if f.kind not in kinds])
            # From here on no new task finds the files, which might go while it reads them: the job forgets its model and
            # checkpoints, and lists no merged files.
            kept_jobs.forget(session, job_id, kinds)
            artifacts.remove(session, job_id, [f.id for f in removed.files if f.kind == ArtifactKind.MERGED])
        # The files go before the other names. An interruption leaves names without files and merged files without names,
        # and a repeated request finishes the work.
        storage.delete(job_id, merged | {file.name for file in removed.files})
        data = {"kinds": sorted({file.kind for file in removed.files}), "freed_bytes": removed.freed_bytes}
        with self.database.transaction() as session:
            artifacts.remove(session, job_id, [file.id for file in removed.files])
            if removed.files:
                kept_jobs.note(session, job_id, "artifacts_removed", {**data, "files": len(removed.files)})
        return removed

    def remove_job(self, job_id: str) -> Removed:
        """Deletes a job that is over: its files, metrics, events, comparisons, and the job itself.

        Raises:
            StateConflict: the job is not over, or an unfinished job starts from its checkpoint.
        """
        with self.database.transaction() as session:
            self._must_be_over(session, job_id, tuple(ArtifactKind))
            files = list(artifacts.of_job(session, job_id))
            kept_jobs.forget(session, job_id, tuple(ArtifactKind))
        Storage(self.settings).delete_job(job_id)
        with self.database.transaction() as session:
            kept_jobs.delete(session, job_id)
        return Removed(files, [])

    def merge(self, job_id: str) -> TaskRecord:
        """Asks a worker to merge a model's adapter into full weights. Raises `StateConflict`.

        While the merged files of an earlier merge are there, that one is returned: another would make the same.
        """
        with self.database.reading() as session:
            job = self._with_model(session, job_id)
            is_merged = any(file.kind == ArtifactKind.MERGED for file in artifacts.of_job(session, job_id))
            done = tasks.succeeded(session, job_id, TaskKind.MERGE) if is_merged else None
        if not job.resolved_spec.get("use_lora", True):
            raise StateConflict(say("job_already_whole", id=job_id))
        return done or self.ask(TaskKind.MERGE, {}, job_id, depends_on=[job.artifact_path])

    def push(self, job_id: str, request: PushRequest) -> TaskRecord:
        """Asks a worker to push a model to the configured hub. Raises `StateConflict`, `NotFound`."""
        with self.database.reading() as session:
            self._with_model(session, job_id)
            files = artifacts.of_job(session, job_id)
            kinds = {file.kind for file in files}
        if request.kind not in kinds:
            is_merge = request.kind == "merged"
            raise NotFound(
                say("job_no_merged", id=job_id) if is_merge else say("job_no_files", id=job_id, kind=request.kind)
            )
        pushed = sorted(file.id for file in files if file.kind == request.kind)
        return self.ask(TaskKind.PUSH, request.model_dump(), job_id, depends_on=pushed)

    def _with_model(self, session: Session, job_id: str) -> JobRecord:
        job = self.own_job(session, job_id)
        if job.state != JobState.SUCCEEDED:
            raise StateConflict(say("job_no_model", id=job_id, state=say(f"job_state.{job.state}")))
        if job.artifact_path is None:
            raise StateConflict(say("model_deleted", id=job_id))
        return job

    def _must_be_over(self, session: Session, job_id: str, kinds: Collection[ArtifactKind]) -> None:
        """Locks the job. Raises `StateConflict` if files of the given kinds are or may be in use."""
        kept_jobs.lock(session, job_id)
        job = self.own_job(session, job_id)
        if not JobState(job.state).is_final:
            raise StateConflict(say("job_not_over", id=job_id, state=say(f"job_state.{job.state}")))
        if (other := kept_jobs.open_starter_from(session, self.tenant, job_id)) is not None:
            raise StateConflict(say("job_starts_another", other=other, id=job_id))
        if _READ_BY_TASKS & set(kinds) and (task := tasks.running_for(session, job_id)) is not None:
            raise StateConflict(say("job_busy", id=job_id, task=say(f"task.{task.kind}")))
