"""Comparisons of a trained model with its reference, asked for and looked up."""

from dataclasses import dataclass

from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from jobs.errors import StateConflict
from jobs.records import TaskRecord
from jobs.repository import attempts, signs, tasks
from jobs.spec import PlainText, Sent
from jobs.states import JobState, TaskKind
from jobs.tenancy import TenantService, WaitingFor, found
from trainer_core.held_out import MOST_PROMPTS
from trainer_core.wording import say


class ComparisonRequest(Sent):
    """A prompt for both models, and how to generate the answers."""

    model_config = ConfigDict(
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"prompt": "هل تعرف اسم عاصمة المغرب؟", "max_length": 64}]},
    )

    prompt: PlainText = Field(min_length=1, max_length=20_000, description="The user's text.")
    max_length: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Maximum new tokens per answer; `null`: 256, or as many as the model has room for after the prompt.",
    )
    temperature: float = Field(0.0, ge=0, le=5, description="0 is greedy; above 0 samples.")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of probability to sample from.")
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Sampling seed. If absent, one is drawn and returned.")


class HeldOutRequest(Sent):
    """How many held-out prompts to ask both models."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompts": 48}]})

    prompts: int = Field(48, ge=1, le=MOST_PROMPTS, description="How many; fewer if the run held out fewer.")
    max_length: int = Field(128, ge=1, le=1024, description="Maximum new tokens per answer.")


@dataclass(frozen=True)
class Comparisons(TenantService):
    """The part of the service of jobs that asks their models."""

    def compare(self, job_id: str, request: ComparisonRequest) -> TaskRecord:
        """Stores a comparison and wakes a generation worker. Raises `StateConflict` unless the job succeeded."""
        model = self._comparable(job_id)
        # Without a seed, each sampled answer is another one.
        joins = request.temperature == 0 or request.seed is not None
        return self.ask(TaskKind.COMPARE, request.model_dump(), job_id, depends_on=[model], joins=joins)

    def compare_held_out(self, job_id: str, request: HeldOutRequest) -> TaskRecord:
        """Stores a comparison over held-out prompts and wakes a generation worker. Raises as `compare` does."""
        model = self._comparable(job_id)
        return self.ask(TaskKind.HELD_OUT, request.model_dump(), job_id, depends_on=[model])

    def _comparable(self, job_id: str) -> str:
        """The place of the job's trained model."""
        with self.database.reading() as session:
            job = self.own_job(session, job_id)
            if job.state != JobState.SUCCEEDED:
                raise StateConflict(say("job_not_comparable", id=job_id, state=say(f"job_state.{job.state}")))
            if job.artifact_path is None:
                raise StateConflict(say("model_deleted", id=job_id))
            return job.artifact_path

    @property
    def comparisons_wait_for(self) -> WaitingFor:
        """What queued comparisons wait for: the GPU, if runs that go first hold each that answers, or as `waiting_for`."""
        with self.database.reading() as session:
            devices = signs.devices(session, "compare")
            is_held = all(device and not attempts.is_device_free(session, device) for device in devices)
        return "gpu" if devices and is_held else self.waiting_for

    def comparisons(
        self, job_id: str, limit: int, cursor: str | None = None, kind: TaskKind = TaskKind.COMPARE
    ) -> list[TaskRecord]:
        """A page of a job's comparisons of a kind, newest first, after the comparison `cursor`."""
        with self.database.reading() as session:
            self.own_job(session, job_id)
            before = self._comparison(session, job_id, cursor, kind).number if cursor else None
            return list(tasks.of_job(session, job_id, kind, limit, before))

    def comparison(self, job_id: str, comparison_id: str, kind: TaskKind = TaskKind.COMPARE) -> TaskRecord:
        with self.database.reading() as session:
            return self._comparison(session, job_id, comparison_id, kind)

    def _comparison(self, session: Session, job_id: str, comparison_id: str, kind: TaskKind) -> TaskRecord:
        record = tasks.owned(session, self.tenant, comparison_id)
        is_it = record is not None and (record.kind, record.job_id) == (kind, job_id)
        return found(record if is_it else None, "comparison", comparison_id)
