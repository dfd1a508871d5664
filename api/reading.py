"""The query parameters of an upload that say how to read the file."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import StringConstraints, ValidationError

from jobs.spec import COLUMN_MAP, PlainText, invalid
from trainer_core.errors import SpecInvalid
from trainer_core.reading_options import ReadingOptions
from trainer_core.wording import say

_Pair = Annotated[PlainText, StringConstraints(pattern=COLUMN_MAP)]
_Name = Annotated[PlainText, StringConstraints(min_length=1, max_length=200)]


def reading_options(
    pairs: Annotated[
        tuple[_Pair, ...],
        Query(
            alias="map",
            max_length=20,
            description="A field and the column or key to read it from, such as `prompt:question`. Repeat for each field.",
        ),
    ] = (),
    encoding: Annotated[
        _Name | None, Query(description="The encoding of a text file that is not Unicode, such as `cp1256`.")
    ] = None,
    sheet: Annotated[_Name | None, Query(description="The sheet to read in a workbook with several.")] = None,
    threshold: Annotated[
        float | None,
        Query(allow_inf_nan=False, description="The lowest score of a good answer, for answers with scores."),
    ] = None,
    on_invalid: Annotated[
        Literal["refuse", "skip"],
        Query(description="`refuse` a file with invalid rows, or `skip` these rows."),
    ] = "refuse",
) -> ReadingOptions:
    """The parameters as `ReadingOptions`. Raises `SpecInvalid`."""
    columns: dict[str, str] = {}
    for pair in pairs:
        field, _, column = pair.partition(":")
        if field in columns:
            raise SpecInvalid.at("map", say("map_twice", field=field))
        columns[field] = column
    try:
        return ReadingOptions(
            map=columns or None, encoding=encoding, sheet=sheet, threshold=threshold, on_invalid=on_invalid
        )
    except ValidationError as error:
        raise invalid(error.errors()) from error


Options = Annotated[ReadingOptions, Depends(reading_options)]
