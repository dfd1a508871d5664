"""Operations on jobs: check, store in one transaction, then wake a worker."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from sqlalchemy.orm import Session

from jobs import quotas, tracing
from jobs.comparisons import Comparisons
from jobs.curves import CurvePoint, downsample
from jobs.errors import DuplicateKey, Forbidden, IdempotencyConflict, NotFound, StateConflict
from jobs.estimates import seconds_until_starts
from jobs.places import data_file, data_places, dataset_file, model_places, versions_of
from jobs.recipes import DataFacts, changed, expanded
from jobs.records import AttemptRecord, JobRecord, TaskRecord
from jobs.repository import attempts, datasets, jobs, kept_jobs, metrics, signs, watch
from jobs.spec import AnyJobSpec, MixedDataset, dataset_ids, read_spec
from jobs.states import JobState, Request, TaskKind
from jobs.storage import Storage
from jobs.tenancy import WaitingFor
from trainer_core import trackers
from trainer_core.config import SETTINGS_OF
from trainer_core.errors import SpecInvalid
from trainer_core.row_names import naming
from trainer_core.rows import Kind, check_file, peek_kind, require_kind
from trainer_core.wording import Message, say

# Files up to this size are checked completely on submission. Of larger ones the worker checks all but the first rows.
_CHECKED_AT_SUBMIT_BYTES = 16 * 2**20
_MOST_SPEC_BYTES = 128 * 1024


@dataclass(frozen=True)
class QueuePlace:
    """A queued job's place (1: next to be claimed), when it will probably start, and what it waits for."""

    position: int
    seconds_until_start: float | None
    waiting_for: WaitingFor


@dataclass(frozen=True)
class JobService(Comparisons):
    """Operations on jobs and their models."""

    # -- jobs

    def submit(self, spec: AnyJobSpec, sent: dict[str, Any], idempotency_key: str | None = None) -> JobRecord:
        """Stores a job and wakes a worker. A repeated request with the same key returns the first one's job.

        Raises:
            ModelNotFound, DataInvalid, NotFound: something in the spec does not exist or does not fit the method.
            IdempotencyConflict: the key was used with a different request.
            Forbidden: the caller may not use that priority.
            RateLimited: the tenant's quota is exhausted.
        """
        key = _Key.of(idempotency_key, "submit", sent)
        return self._known(key) or self._store(self._checked(spec, sent), key)

    def clone(self, job_id: str, overrides: dict[str, Any], idempotency_key: str | None = None) -> JobRecord:
        """A new job with another job's original spec and some changed fields.

        A dataset among the overrides replaces the old one, whichever field named either. What a recipe set is kept, unless
        the overrides change something that it was worked out from.

        Raises:
            SpecInvalid: the changed spec is invalid.
            Also everything that `submit` raises.
        """
        key = _Key.of(idempotency_key, "clone", {"job_id": job_id, "overrides": overrides})
        if known := self._known(key):
            return known
        old = self.job(job_id)
        sent, recipe = changed(old.spec, old.recipe, overrides)
        return self._store({**self._checked(read_spec(sent), sent, recipe), "rerun_of": old.id}, key, {"clone_of": old.id})

    def _checked(self, spec: AnyJobSpec, sent: dict[str, Any], recipe: dict[str, Any] | None = None) -> dict[str, Any]:
        """The columns of a job, after every check that needs no tokenizer.

        Args:
            recipe: the record of a recipe whose values are kept; by default the spec's recipe is expanded.
        """
        self._check_priority(spec.priority)
        quotas.check_max_hours(self.settings, spec.max_hours)
        model_places(self.settings, spec.model_dump(mode="json"))
        with self.database.reading() as session:
            self._check_trackers(session, spec)
            data = [self._check_data(session, spec, spec.dataset_id, spec.dataset_path, "dataset_path")]
            evaluation = self._check_data(session, spec, spec.eval_dataset_id, spec.eval_dataset_path, "eval_dataset_path")
            for place, each in enumerate(spec.datasets or []):
                field = f"datasets.{place}.dataset_path"
                data.append(self._check_data(session, spec, each.dataset_id, each.dataset_path, field, mixed=each))
        known = [each for each in data if each]
        if recipe:
            spec = read_spec({**sent, **{field["name"]: field["value"] for field in recipe["fields"]}})
        else:
            spec, recipe = expanded(self.settings, spec, sent, known, is_evaluated=evaluation is not None)
        resolved = spec.model_dump(mode="json")
        resolved["max_hours"] = spec.max_hours or self.settings.max_hours
        for place in range(len(spec.datasets or [])):
            resolved["datasets"][place]["name"] = known[place].name
        if spec.datasets:
            data_places(self.settings, resolved)
        _check_size(resolved)
        return {
            "name": spec.name,
            "method": spec.method,
            "model_name": spec.model_name,
            "dataset_id": spec.dataset_id,
            "priority": spec.priority,
            "gpu_class": spec.gpu_class,
            "spec": sent,
            "resolved_spec": resolved,
            "recipe": recipe,
        }

    def rerun(self, job_id: str, from_checkpoint: bool = False, idempotency_key: str | None = None) -> JobRecord:
        """A new job with the spec of a finished one, which stays unchanged.

        Args:
            from_checkpoint: start from the old job's newest checkpoint instead of the first step.

        Raises:
            StateConflict: the job is not over, or has no checkpoint to start from.
            IdempotencyConflict: the key was used with a different request.
        """
        key = _Key.of(idempotency_key, "rerun", {"job_id": job_id, "from_checkpoint": from_checkpoint})
        if known := self._known(key):
            return known
        old = self.job(job_id)
        if not JobState(old.state).is_final:
            raise StateConflict(say("job_not_rerun", id=job_id, state=say(f"job_state.{old.state}")))
        self._check_priority(old.priority)
        start_from = (old.id if old.checkpoint_step else old.start_from) if from_checkpoint else None
        if from_checkpoint and start_from is None:
            raise StateConflict(say("job_no_checkpoint", id=job_id))
        same = ("name", "method", "model_name", "dataset_id", "priority", "gpu_class", "spec", "resolved_spec", "recipe")
        fields = {name: getattr(old, name) for name in same}
        new = {"rerun_of": old.id, "start_from": start_from}
        return self._store({**fields, **new}, key, {"rerun_of": old.id, "from_checkpoint": from_checkpoint})

    def _check_priority(self, priority: int) -> None:
        most = self.caller.max_priority
        if priority > most:
            raise Forbidden.at("priority", say("priority_too_high", most=most, priority=priority))

    def _check_trackers(self, session: Session, spec: AnyJobSpec) -> None:
        """Raises `SpecInvalid` if no worker could send metrics where the spec asks."""
        if not spec.report_to:
            return
        known = signs.trackers(session, spec.gpu_class)
        # Before the first worker has started, this machine is the best guess.
        if lacking := sorted(set(spec.report_to) - (set(trackers.installed()) if known is None else known)):
            packages = [trackers.PACKAGES[name][1] for name in lacking]
            raise SpecInvalid.at("report_to", say("tracker_on_no_worker", names=lacking, packages=packages))

    def _known(self, key: "_Key") -> JobRecord | None:
        """The job stored with the key. Raises `IdempotencyConflict`."""
        if key.text is None:
            return None
        with self.database.reading() as session:
            job = jobs.by_key(session, self.tenant, key.text)
        if job is not None and job.request_sha256 != key.request_sha256:
            raise IdempotencyConflict(say("idempotency_key_used", key=key.text, id=job.id))
        return job

    def _store(self, fields: dict[str, Any], key: "_Key", data: dict[str, Any] | None = None) -> JobRecord:
        owner = {"tenant": self.tenant, "idempotency_key": key.text, "request_sha256": key.request_sha256}
        trace = {"traceparent": tracing.current_traceparent()}
        try:
            with self.database.transaction() as session:
                quotas.check_job(session, self.settings, self.tenant)
                self._hold(session, fields)
                job_id = jobs.insert(session, {**fields, **owner, **trace}, data)
        except DuplicateKey:
            # The same request was sent twice concurrently, and the other one won.
            if known := self._known(key):
                return known
            raise
        self.queue.publish_training(job_id, fields["gpu_class"])
        self.queue.nudge(job_id)
        return self.job(job_id)

    def _hold(self, session: Session, fields: dict[str, Any]) -> None:
        """Checks that everything a new job refers to exists, and locks it until the job is stored.

        Raises:
            NotFound: a dataset was deleted.
            StateConflict: the checkpoints to start from were deleted.
        """
        # In order of id, so that two submissions never deadlock.
        for dataset_id in sorted(dataset_ids(fields["resolved_spec"])):
            if not datasets.held(session, self.tenant, dataset_id):
                raise NotFound(say("not_found.dataset", id=dataset_id))
        start_from = fields.get("start_from")
        if start_from and not kept_jobs.has_checkpoint(session, self.tenant, start_from):
            raise StateConflict(say("checkpoints_deleted", id=start_from))

    def _check_data(
        self,
        session: Session,
        spec: AnyJobSpec,
        dataset_id: str | None,
        path: str | None,
        field: str,
        *,
        mixed: MixedDataset | None = None,
    ) -> DataFacts | None:
        """Checks that the caller may use the data and, as far as a quick look shows, that it fits the method.

        Args:
            field: the spec field with the path.
            mixed: the dataset in a mix. Errors then name it.

        Returns:
            What is known of the data; None if there is none.
        """
        own_name = mixed.name if mixed else None
        if dataset_id:
            record = datasets.owned(session, self.tenant, dataset_id)
            if record is None:
                raise NotFound.at(field.replace("_path", "_id"), say("not_found.dataset", id=dataset_id))
            name = own_name or record.name or dataset_id[:8]
            with naming(name if mixed else None):
                require_kind(spec.method, cast("Kind", record.kind), field.replace("_path", "_id"))
            dataset_file(self.settings, dataset_id)
            counts = (record.train_rows, record.validation_rows, record.desirable_rows)
            return DataFacts(name, cast("Kind", record.kind), *counts)
        if path:
            file = data_file(self.settings, path, field)
            whole = file.stat().st_size <= _CHECKED_AT_SUBMIT_BYTES
            name = own_name or path
            with naming(name if mixed else None):
                report = check_file(file) if whole else None
                kind = report.kind if report else peek_kind(file)
                require_kind(spec.method, kind, field)
            counts = (report.train_rows, report.validation_rows, report.desirable_rows) if report else ()
            return DataFacts(name, kind, *counts)
        return None

    def job(self, job_id: str) -> JobRecord:
        with self.database.reading() as session:
            return self.own_job(session, job_id)

    def jobs(
        self, limit: int, cursor: str | None = None, state: str | None = None, method: str | None = None
    ) -> list[JobRecord]:
        """A page of jobs, newest first, after the job `cursor`."""
        with self.database.reading() as session:
            before = self.own_job(session, cursor).number if cursor else None
            return list(jobs.page(session, self.tenant, limit, before, state=state, method=method))

    def queue_places(self, found: Sequence[JobRecord]) -> dict[str, QueuePlace]:
        """The places of the queued jobs among `found`, by job id."""
        with self.database.reading() as session:
            positions = jobs.queue_positions(session, found)
            pausing = jobs.pausing(session, found)
            durations = attempts.last_durations_s(session) if positions else []
            waiting_for = "quota" if positions and quotas.is_spent(session, self.settings, self.tenant) else None
            places: dict[str, QueuePlace] = {}
            for gpu_class, of_class in positions.items():
                running = attempts.busy_seconds_left(session, gpu_class)
                starts = seconds_until_starts(max(of_class.values()), running, durations)
                places |= {
                    job_id: QueuePlace(
                        place, starts[place - 1], "pause" if job_id in pausing else waiting_for or self.waiting_for
                    )
                    for job_id, place in of_class.items()
                }
            return places

    def attempts(self, job_id: str) -> list[AttemptRecord]:
        """Every attempt of a job, oldest first."""
        with self.database.reading() as session:
            self.own_job(session, job_id)
            return list(attempts.of_job(session, job_id))

    def metrics(
        self,
        job_id: str,
        names: Sequence[str] | None = None,
        *,
        only_current: bool = False,
        max_points: int | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> list[CurvePoint]:
        """Metric points by name, attempt and step.

        Args:
            only_current: leave out steps that a later attempt repeated, so that no step appears twice.
            max_points: downsample each curve to this many points, keeping its shape; None: all.
            first_step, last_step: only steps between them, inclusive.
        """
        with self.database.reading() as session:
            self.own_job(session, job_id)
            points = metrics.series(session, job_id, names, first_step=first_step, last_step=last_step)
            begun = [(each.number, each.first_step) for each in attempts.of_job(session, job_id)]
        if only_current:
            points = [
                point
                for point in points
                if all(first is None or number <= point.attempt or point.step <= first for number, first in begun)
            ]
        return downsample(points, max_points) if max_points else points

    def metadata(self, job_id: str) -> dict[str, Any]:
        """The trained model's metadata and the job's specs. Before the job ends, what is known, with `complete` False."""
        job = self.job(job_id)
        spec, settings = job.resolved_spec, SETTINGS_OF[job.method]
        known = {
            "training_method": job.method,
            "ref_model_name": spec["ref_model_name"] or job.model_name,
            **settings.stated(settings.metadata_fields(), spec),
            "training_completed_at": None,
        }
        return {
            **(job.metadata_ or known),
            "complete": job.metadata_ is not None,
            "job_id": job.id,
            "sent_spec": job.spec,
            "resolved_spec": spec,
            "recipe": job.recipe,
        }

    def logs(self, job_id: str, attempt: int | None = None) -> list[int]:
        """The attempts that have a log, or only the given one. Raises `NotFound` if that has none."""
        job, storage = self.job(job_id), Storage(self.settings)
        wanted = [number for number in range(1, job.attempt + 1) if attempt in (None, number)]
        found = [number for number in wanted if storage.has(job_id, _log_name(number))]
        if attempt and not found:
            raise NotFound(say("job_no_log", id=job_id, attempt=attempt))
        return found

    def log(self, job_id: str, attempt: int, last_bytes: int | None = None) -> BinaryIO:
        """An open log, positioned at the first whole line within `last_bytes` of its end. Raises `NotFound`."""
        file, size = Storage(self.settings).open(job_id, _log_name(attempt))
        if last_bytes is not None and last_bytes < size:
            file.seek(size - last_bytes - 1)
            file.readline()
        return file

    def oldest_expired_lease_s(self) -> float:
        with self.database.reading() as session:
            return watch.oldest_expired_lease_s(session)

    def cancel(self, job_id: str, save_checkpoint: bool = False) -> JobRecord:
        """Cancels an idle job immediately, or asks the worker of a running one. Raises `StateConflict` otherwise.

        Args:
            save_checkpoint: let a running job save a checkpoint at its next step boundary first.
        """
        what = Request.CANCEL_SAVING if save_checkpoint else Request.CANCEL
        return self._change(
            job_id, "cancelled", lambda session: jobs.cancel_idle(session, job_id) or jobs.request(session, job_id, what)
        )

    def pause(self, job_id: str) -> JobRecord:
        """Pauses a queued job immediately, a running one after a checkpoint at its next step. Raises `StateConflict`."""
        return self._change(
            job_id,
            "paused",
            lambda session: jobs.pause_queued(session, job_id) or jobs.request(session, job_id, Request.PAUSE),
        )

    def resume(self, job_id: str, max_hours: float | None = None) -> JobRecord:
        """Requeues a paused job, which resumes from its checkpoint.

        Args:
            max_hours: the job's new limit; None keeps the old one.

        Raises:
            StateConflict: the job is not paused, or has run for as long as it may.
            RateLimited: the tenant's training hours are used up.
            SpecInvalid: the service allows no job as many hours.
            ModelNotFound: one of its models is gone. The job stays paused, because its run would fail permanently.
        """
        quotas.check_max_hours(self.settings, max_hours)
        with self.database.reading() as session:
            job = self.own_job(session, job_id)
            if job.state == JobState.PAUSED:
                model_places(self.settings, job.resolved_spec)

        def change(session: Session) -> bool:
            job = self.own_job(session, job_id)
            if job.state != JobState.PAUSED:
                return False
            spec = job.resolved_spec if max_hours is None else {**job.resolved_spec, "max_hours": max_hours}
            quotas.check_time(session, self.settings, job, spec)
            quotas.check_hours(session, self.settings, self.tenant)
            return jobs.resume(session, job_id, {"resolved_spec": spec})

        job = self._change(job_id, "resumed", change)
        self.queue.publish_training(job_id, job.gpu_class)
        return job

    def _change(self, job_id: str, action: str, change: Callable[[Session], bool]) -> JobRecord:
        with self.database.transaction() as session:
            self.own_job(session, job_id)
            changed = change(session)
            session.expire_all()
            job = self.own_job(session, job_id)
            if not changed:
                raise StateConflict(say(f"job_cannot.{action}", id=job_id, standing=_standing(job)))
        self.queue.nudge(job_id)
        return job

    # -- dry runs

    def validate(self, spec: AnyJobSpec, sent: dict[str, Any]) -> TaskRecord:
        """Checks a spec as `submit` does, and asks a worker for a dry run. Raises what `submit` raises."""
        fields = self._checked(spec, sent)
        asked = {"spec": fields["resolved_spec"], "recipe": fields["recipe"]}
        return self.ask(TaskKind.VALIDATE, asked, depends_on=[versions_of(self.settings, fields["resolved_spec"])])


@dataclass(frozen=True)
class _Key:
    """An Idempotency-Key and the hash of its request."""

    text: str | None
    request_sha256: str | None

    @classmethod
    def of(cls, text: str | None, action: str, request: dict[str, Any]) -> "_Key":
        if text is None:
            return cls(None, None)
        canonical = json.dumps([action, request], ensure_ascii=False, sort_keys=True)
        return cls(text, hashlib.sha256(canonical.encode()).hexdigest())


def _check_size(spec: dict[str, Any]) -> None:
    """Raises `SpecInvalid` for a spec too large to store, at its largest field: lists of jobs include specs."""
    sizes = {name: len(json.dumps(value, ensure_ascii=False).encode()) for name, value in spec.items()}
    if sum(sizes.values()) > _MOST_SPEC_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        found = {"size": sum(sizes.values()), "most": _MOST_SPEC_BYTES, "largest": sizes[largest]}
        raise SpecInvalid.at(largest, say("spec_too_large", **found))


def _log_name(attempt: int) -> str:
    return f"attempt-{attempt}/log.txt"


def _standing(job: JobRecord) -> Message:
    """A job's state in words, for errors about actions that do not apply to it."""
    if job.requested:
        return say("job_already.pause" if job.requested == Request.PAUSE else "job_already.cancel")
    return say(f"job_already.{job.state}" if JobState(job.state).is_final else f"job_state.{job.state}")
