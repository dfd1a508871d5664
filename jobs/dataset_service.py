"""Uploads, lists, shows, reports on and deletes datasets."""

import logging
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

from pydantic import ConfigDict, Field

from jobs import quotas, tracing
from jobs.errors import DatabaseError, DuplicateKey, NotFound, RateLimited, StateConflict
from jobs.places import dataset_file, find_model, versions_of
from jobs.records import DatasetRecord, TaskRecord
from jobs.repository import datasets, kept_jobs, reports, tasks, turns
from jobs.spec import MODEL_NAME, Sent, read_spec
from jobs.states import TaskKind, TaskState
from jobs.tenancy import TenantService, found
from jobs.uploads import DatasetCheck, DatasetUpload, Room
from trainer_core import data_report
from trainer_core.config import SETTINGS_OF, Method, TemplateOption, default_for
from trainer_core.reading_options import AS_IT_IS, ReadingOptions
from trainer_core.row_rules import LABELLED, PAIRS, Kind
from trainer_core.rows import peek_rows, require_kind
from trainer_core.wording import say

log = logging.getLogger(__name__)

_DEFAULTS = [SETTINGS_OF[default_for(kind)].title for kind in (LABELLED, PAIRS)]


class PreviewRequest(Sent):
    """The rows of a dataset to show as a model would see them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_name": "tafdil/tiny-arabic-qwen-2", "rows": 3}]})

    model_name: str = MODEL_NAME
    method: Method | None = Field(None, description=f"Default: {_DEFAULTS[0]} for labelled rows, {_DEFAULTS[1]} for pairs.")
    first_row: int = Field(1, ge=1, le=2**31 - 1, description="The first row to show, counted from 1.")
    rows: int = Field(5, ge=1, le=50, description="How many.")
    max_prompt_length: int = Field(256, ge=1, le=2**31 - 1)
    max_length: int = Field(512, ge=8, le=2**31 - 1)
    on_overlong: Literal["reject", "drop", "truncate"] = "truncate"
    apply_chat_template: bool | Literal["auto"] = "auto"
    system_prompt: str | None = Field(None, min_length=1, max_length=20_000)
    chat_template_kwargs: dict[str, TemplateOption] = Field(default_factory=dict, max_length=20)
    special_tokens_in_text: Literal["split", "refuse", "allow"] = "split"


@dataclass(frozen=True)
class DatasetService(TenantService):
    """Uploaded datasets."""

    def preview(self, dataset_id: str, request: PreviewRequest) -> TaskRecord:
        """Asks a worker to render rows of a dataset as a model would see them. Raises `SpecInvalid`, `DataInvalid`."""
        dataset = self.dataset(dataset_id)
        kind = cast("Kind", dataset.kind)
        method = request.method or default_for(kind)
        require_kind(method, kind, "method")
        find_model(self.settings, request.model_name)
        dataset_file(self.settings, dataset_id)
        of_training = request.model_dump(exclude={"method", "first_row", "rows"})
        spec = read_spec({**of_training, "method": method, "dataset_id": dataset_id}).model_dump(mode="json")
        rows = {"first_row": request.first_row, "rows": request.rows}
        asked = {"dataset_id": dataset_id, "spec": spec, **rows}
        return self.ask(TaskKind.PREVIEW, asked, depends_on=[versions_of(self.settings, spec)])

    def report(self, dataset_id: str, model_name: str | None = None) -> TaskRecord:
        """The task with the report about a dataset's rows. Asks a worker for it if nobody has, or if that failed.

        Args:
            model_name: also count tokens of this model's vocabulary.
        """
        dataset = self.dataset(dataset_id)
        if model_name:
            find_model(self.settings, model_name, "model")
        dataset_file(self.settings, dataset_id)
        try:
            return self._report(dataset, model_name)
        except DuplicateKey:
            # Somebody asked for it at the same time.
            return self._report(dataset, model_name)

    def _report(self, dataset: DatasetRecord, model_name: str | None) -> TaskRecord:
        key = (dataset, data_report.VERSION, model_name or "")
        with self.database.transaction() as session:
            if not datasets.held(session, self.tenant, dataset.id):
                raise NotFound(say("not_found.dataset", id=dataset.id))
            known = reports.task_of(session, *key)
            if known is not None and known.state not in (TaskState.FAILED, TaskState.CANCELLED):
                return known
            quotas.check_task(session, self.settings, self.tenant)
            request = {"dataset_id": dataset.id, "model_name": model_name}
            traceparent = tracing.current_traceparent()
            task_id = tasks.insert(session, TaskKind.REPORT, self.tenant, request, traceparent=traceparent)
            reports.keep(session, *key, task_id)
        self.queue.publish_task(task_id, TaskKind.REPORT)
        return self.task(task_id)

    def dataset(self, dataset_id: str) -> DatasetRecord:
        with self.database.reading() as session:
            return found(datasets.owned(session, self.tenant, dataset_id), "dataset", dataset_id)

    def datasets(self, limit: int, cursor: str | None = None) -> list[DatasetRecord]:
        """A page of datasets, newest first, after the dataset `cursor`."""
        with self.database.reading() as session:
            before = found(datasets.owned(session, self.tenant, cursor), "dataset", cursor).number if cursor else None
            return list(datasets.page(session, self.tenant, limit, before))

    def rows(self, dataset_id: str, first: int, count: int) -> list[dict[str, Any]]:
        """`count` training rows of a dataset, starting at row `first` (from 1)."""
        self.dataset(dataset_id)
        return peek_rows(dataset_file(self.settings, dataset_id), first, count)

    def remove(self, dataset_id: str) -> int:
        """Deletes a dataset and returns its size in bytes. Raises `StateConflict` while an unfinished job uses it."""
        record = self.dataset(dataset_id)
        with self.database.transaction() as session:
            # A report that it shares passes to a dataset that nobody deletes at the same time.
            turns.take(session, self.tenant)
            datasets.lock(session, dataset_id)
            user = kept_jobs.open_user_of(session, self.tenant, dataset_id)
            if user is not None:
                raise StateConflict(say("dataset_in_use", id=dataset_id, job=user))
            reports.forget(session, record)
            datasets.delete(session, dataset_id)
        for ending in ("rows", "broken.csv"):
            (self.settings.datasets_dir / f"{dataset_id}.{ending}").unlink(missing_ok=True)
        return record.size_bytes

    def broken(self, dataset_id: str) -> BinaryIO:
        """The rows skipped by a dataset's upload, as CSV. Raises `NotFound` if there are none."""
        record = self.dataset(dataset_id)
        if not (record.reading or {}).get("skipped_rows"):
            raise NotFound(say("dataset_no_skipped", id=dataset_id))
        try:
            return (self.settings.datasets_dir / f"{dataset_id}.broken.csv").open("rb")
        except FileNotFoundError as error:
            raise NotFound(say("dataset_skipped_gone", id=dataset_id)) from error

    def begin_upload(self, name: str | None, options: ReadingOptions = AS_IT_IS) -> DatasetUpload:
        """Starts receiving a dataset. Raises `TooLarge` if the tenant's datasets fill its quota."""
        return DatasetUpload(self.settings, name, self._store_dataset, options, self._room())

    def begin_check(self, options: ReadingOptions) -> DatasetCheck:
        """Starts receiving a file that is checked but not stored."""
        return DatasetCheck(self.settings, options, self._room())

    def _room(self) -> Room:
        def check(size_bytes: int) -> None:
            with self.database.reading() as session:
                quotas.check_upload(session, self.settings, self.tenant, size_bytes)

        check(1)
        return Room(self.tenant, check)

    def _store_dataset(self, fields: dict[str, Any]) -> DatasetRecord:
        with self.database.transaction() as session:
            quotas.check_upload(session, self.settings, self.tenant, fields["size_bytes"])
            record = datasets.insert(session, {**fields, "tenant": self.tenant})
        # The dataset is stored: an error from here on would delete its files.
        if self.settings.report_at_upload:
            try:
                self.report(record.id)
            except (DatabaseError, RateLimited) as error:
                # Its report is computed when somebody asks for it.
                log.warning("no report was asked for: %s", str(error).splitlines()[0])
            except Exception:
                log.exception("no report was asked for")
        return record
