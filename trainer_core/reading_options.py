"""Options for reading a file of rows. Torch-free."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer_core.wording import Message, say

Name = Annotated[str, Field(min_length=1, max_length=200)]


class ReadingOptions(BaseModel):
    """How to read a file of rows. The defaults read any file that can be read in only one way."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    map: dict[Name, Name] | None = Field(
        None,
        max_length=20,
        description="The file's column or key for each field, such as `question` for `prompt`.",
    )
    encoding: Name | None = Field(None, description="The encoding of a text file that is not Unicode, such as `cp1256`.")
    sheet: Name | None = Field(None, description="The sheet to read in a workbook with several.")
    threshold: float | None = Field(None, description="The lowest score of a good answer, for answers with scores.")
    on_invalid: Literal["refuse", "skip"] = Field(
        "refuse", description="`refuse` a file with invalid rows, or `skip` these rows."
    )


def misplaced(options: ReadingOptions, file_kind: str) -> tuple[str, Message] | None:
    """An option that does not apply to a kind of file, and the reason; None if every option applies.

    Args:
        file_kind: as readers report it: `csv`, `xlsx.zip`, …
    """
    kind = file_kind.partition(".")[0]
    name = _NAMES.get(kind, kind.upper())
    if options.sheet is not None and kind not in _WORKBOOKS:
        return "sheet", say("no_sheet", kind=file_kind, name=name)
    if options.encoding is not None and kind not in _TEXTS:
        return "encoding", say("no_encoding", kind=file_kind, name=name)
    return None


_WORKBOOKS = frozenset({"xlsx", "xlsb", "xls", "ods"})
_TEXTS = frozenset({"jsonl", "json", "json_rows", "json_objects", "json_columns", "csv", "tsv"})
_NAMES = {
    "parquet": "Parquet",
    "arrow": "Arrow",
    "arrow_stream": "Arrow",
    "json_rows": "JSON",
    "json_objects": "JSON",
    "json_columns": "JSON",
}

AS_IT_IS = ReadingOptions()  # pyright: ignore[reportCallIssue]
