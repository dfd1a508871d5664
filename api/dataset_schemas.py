"""Responses about datasets: how a file was read, what it contains, and its rows."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from api.schemas import Stored, Task, columns_of
from api.sentences import DetailFields, ErrorFields, WarningFields, WordedFields
from jobs.records import Record
from jobs.uploads import Found, reading_of
from trainer_core.errors import DataUnclear
from trainer_core.row_preview import cells, conversation


class Reading(BaseModel):
    """How the uploaded file was read. All fields are null for datasets of earlier versions."""

    file_kind: str | None = Field(None, description="The kind of file: `jsonl`, `csv`, `xlsx` and so on.")
    encoding: str | None = Field(
        None, description="The text's encoding, unless it is UTF-8; null for files that are not text."
    )
    layout: str | None = Field(
        None,
        description="The layout of the rows: a published one, `own`, `map`, or `names` (columns recognized by name).",
    )
    mapping: dict[str, str] | None = Field(None, description="The column or key of each field.")
    unused: list[str] | None = Field(None, description="Columns that were not read.")
    skipped_rows: int | None = Field(None, description="Skipped rows; `GET /v1/datasets/{id}/broken` returns them.")
    warnings: list[DetailFields] | None = Field(
        None, description="Values that are valid and probably a mistake, in the form of an error's `details`."
    )


class _Kept(Stored):
    """The stored dataset. Its id comes first, where scripts look for it."""

    id: str
    name: str | None
    format: str = Field(description="Format of the stored rows: `jsonl`, `json` or `parquet`.")
    kind: str = Field(description="`kto` (prompt, completion, label) or `pairs` (prompt, chosen, rejected).")
    train_rows: int
    validation_rows: int
    desirable_rows: int = Field(description="Training rows with label true; 0 for pairs.")
    size_bytes: int = Field(description="Size on disk, including the skipped rows.")
    sha256: str = Field(description="Of the stored rows.")
    source_sha256: str | None = Field(None, description="Of the uploaded file.")
    options: dict[str, Any] | None = Field(None, description="The reading options of the upload.")
    created_at: datetime


class Dataset(Reading, _Kept):
    """An uploaded dataset. Files that were not in Tafdil's own format were converted."""

    @classmethod
    def of(cls, record: Record) -> Self:
        reading = getattr(record, "reading", None) or {}
        kept = cls.model_fields.keys() - Reading.model_fields.keys() - {"source_sha256", "options"}
        return cls(**columns_of(record, kept), **reading)


class Conversation(BaseModel):
    """A row as chat turns, as a model's chat template receives it. No template or tokenizer was applied."""

    row: int | None = Field(description="The row's line; null for the rows of a question.")
    prompt: list[dict[str, Any]] = Field(description="The turns before the answer: `role`, `content`, and more, as text.")
    answers: dict[str, list[dict[str, Any]]] = Field(description="The turns of `completion`, or of `chosen` and `rejected`.")
    label: bool | None


class DatasetCheck(Reading):
    """What an upload of the file would report. Nothing was stored."""

    valid: bool = Field(description="Whether an upload would succeed.")
    error: ErrorFields | None = Field(
        description="The error that an upload would return, with a `question` if an option is missing."
    )
    converted: bool = Field(description="Whether an upload would convert the rows to Tafdil's own format.")
    kind: str | None = Field(description="`kto` or `pairs`; null if no row could be read.")
    columns: list[str] = Field(description="The known columns or keys of the file.")
    train_rows: int
    validation_rows: int
    desirable_rows: int
    error_count: int = Field(description="The number of errors in rows.")
    rows: list[dict[str, Any]] = Field(
        description="The first ten rows as they would be stored, each with its line as `row`."
    )
    conversations: list[Conversation] = Field(
        description="The same rows as chat turns. Text longer than 10,000 characters is shortened."
    )
    cells: dict[str, list[str]] = Field(description="The first three values of each column, shortened to 200 characters.")

    @classmethod
    def of(cls, found: Found) -> "DatasetCheck":
        report, error = found.report, found.error
        question = error.question if isinstance(error, DataUnclear) else None
        reading = reading_of(report)
        columns = list(question.choices) if question and question.about == "map" else []
        columns = columns or [*dict.fromkeys([*reading["mapping"].values(), *reading["unused"]])]
        shown = found.rows or list(question.rows if question else ())
        counts = ("kind", "train_rows", "validation_rows", "desirable_rows", "error_count")
        return cls(
            valid=error is None,
            error=ErrorFields(error.as_dict()) if error else None,
            converted=not report.is_plain,
            columns=columns,
            rows=shown,
            conversations=[Conversation(**conversation(row)) for row in shown],
            cells=cells(found.first_values or shown),
            **{name: getattr(report, name) for name in counts},
            **reading,
        )


class DatasetPage(BaseModel):
    """Datasets, newest first."""

    datasets: list[Dataset]
    next_cursor: str | None


class DatasetRemoval(BaseModel):
    """A deleted dataset."""

    dataset_id: str
    freed_bytes: int


class DatasetRows(BaseModel):
    """Rows as they are in a dataset's file."""

    dataset_id: str
    rows: list[dict[str, Any]]


class DataReport(BaseModel):
    """What a dataset contains, and what a model could learn from it instead of the preference."""

    version: int = Field(description="Of the report; another version computes other figures from the same rows.")
    kind: str = Field(description="`kto` or `pairs`.")
    rows: int = Field(description="Training rows.")
    measured_rows: int = Field(description="Rows whose traits were measured: all, or a sample of very large files.")
    sampled_rows: int = Field(description="Rows of the sample for words, languages, spellings, near duplicates and tokens.")
    prompts: int = Field(description="Different prompts.")
    most_rows_of_a_prompt: int
    shortcuts: WordedFields = Field(
        description="`named`: the shortcuts, the strongest first, in words, with rows and advice. `rules`: every rule that "
        "was tried, with the share of rows in which it is right and its interval. `smallest_named`: the smallest share that "
        "would have been named. `note`: what so few rows cannot show."
    )
    findings: list[WarningFields] = Field(description="What to read first, each as a sentence.")
    sides: dict[str, Any] = Field(description="Lengths and signs of the texts of each side.")
    varieties: dict[str, Any] = Field(description="The same for each variety that rows state in `dialect`.")
    languages: dict[str, Any]
    spellings: dict[str, Any] = Field(description="Words spelled otherwise than mostly in this file.")
    duplicates: dict[str, Any] = Field(description="Equal, nearly equal and contradicting rows.")
    tokens: dict[str, Any] | None = Field(description="Tokens per word by side and variety; null without `model`.")


class DatasetReport(Task):
    """A report about a dataset."""

    result: DataReport | None  # pyright: ignore[reportIncompatibleVariableOverride]
