"""Options for reading a file of rows, reports of how it was read, and questions about it."""

import os
import shlex
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from tafdil.cli.context import (
    complain,
    complain_more,
    complaints,
    connection_url,
    emit,
    remark,
    show_json,
    spoken,
    told,
    usage,
)
from tafdil.cli.words import in_words, sentence
from tafdil.text import visible
from trainer_core.errors import DataInvalid, DataUnclear
from trainer_core.reading_options import ReadingOptions
from trainer_core.wording import say

Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FIELD=COLUMN", help="A field and its column, such as prompt=question. Repeat for each field."
    ),
]
Encoding = Annotated[str | None, typer.Option(help="The encoding of a text file that is not Unicode, such as cp1256.")]
Sheet = Annotated[str | None, typer.Option(help="The sheet to read in a workbook with several.")]
Threshold = Annotated[float | None, typer.Option(help="The lowest score of a good answer, for answers with scores.")]
OnInvalid = Annotated[Literal["refuse", "skip"], typer.Option(help="Refuse a file with invalid rows, or skip these rows.")]
# Layouts whose names say no more than the columns do.
_UNPUBLISHED = (None, "own", "map", "names")
_SHOWN_ERRORS = 20
_SAMPLE_WIDTH, _SAMPLE_FIELDS = 60, 8
# The fields of each kind of table. A field without a guess gets a placeholder.
_FIELDS = (
    ("prompt", "completion", "label"),
    ("prompt", "answer_1", "answer_2", "preferred"),
    ("prompt", "chosen", "rejected"),
)


def options_of(
    maps: Sequence[str] | None, encoding: str | None, sheet: str | None, threshold: float | None, on_invalid: str
) -> ReadingOptions:
    """The options of a command as `ReadingOptions`. Invalid ones end the command."""
    columns: dict[str, str] = {}
    for pair in maps or ():
        field, separator, column = pair.partition("=")
        if not separator or not field or not column:
            usage(say("cli.map_form", value=pair))
        if field.strip() in columns:
            usage(say("cli.map_twice", field=field.strip()))
        columns[field.strip()] = column
    given = {"encoding": encoding, "sheet": sheet, "threshold": threshold, "on_invalid": on_invalid}
    try:
        return ReadingOptions.model_validate({**given, "map": columns or None})
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{'.'.join(map(str, first['loc'])).replace('_', '-')}"
        usage(say("cli.option_invalid", option=option, problem=first["msg"]))


def tell_reading(found: Mapping[str, Any]) -> None:
    """Prints how a file was read: `found` has the fields of a report or of a dataset."""
    if found.get("file_kind"):
        read: str = found["file_kind"]
        if found.get("encoding"):
            read = say("cli.with_encoding", read=read, encoding=found["encoding"])
        if found.get("layout") not in _UNPUBLISHED:
            read = say("cli.with_layout", read=read, layout=found["layout"])
        emit(say("cli.read_as", read=read))
    for field, column in (found.get("mapping") or {}).items():
        if field != column:
            emit(say("cli.read_from", field=f"{field:>12}", column=column))
    if found.get("unused"):
        emit(say("cli.unused_columns", columns=found["unused"]))
    if skipped := found.get("skipped_rows"):
        emit(say("cli.skipped", n=skipped))
    for warning in found.get("warnings") or ():
        emit(say("cli.warning", message=spoken(warning)), "yellow")


def ask(question: Mapping[str, Any], command: str, path: Path, options: ReadingOptions, *more: str) -> None:
    """Prints a question as a small table, and the command that answers it.

    Args:
        question: `about`, `choices`, `guess` and `rows`, as in `trainer_core.errors.Question`.
        command: the command that asked, such as `upload`.
        more: arguments after the file.
    """
    about, guess = str(question["about"]), question["guess"]
    table = Table(box=None, pad_edge=False)
    if about == "map":
        fields = {column: field for field, column in (guess or {}).items()}
        table.add_column("column")
        table.add_column("field")
        for column in question["choices"]:
            table.add_row(Text(told(column)), Text(fields.get(column, "")))
    else:
        table.add_column({"encoding": "encoding", "sheet": "sheet", "threshold": "column"}[about])
        for choice in question["choices"]:
            table.add_row(
                Text(told(choice) + (f"  {in_words(say('cli.most_likely'), sys.stderr)}" if choice == guess else ""))
            )
    complaints.print(table)
    for row in filter(None, question["rows"][:1]):
        remark(say("cli.first_row_would" if guess else "cli.first_row"))
        for field, value in list(row.items())[:_SAMPLE_FIELDS]:
            text = str(value)
            shown = text if len(text) <= _SAMPLE_WIDTH else f"{text[:_SAMPLE_WIDTH]}…"
            complaints.print(Text(f"{told(field):>12}  {told(shown)}"))
    is_whole = bool(guess) and (about != "map" or _whole(guess) == guess)
    remark(say("cli.run_if_right" if is_whole else "cli.run_to_continue"))
    complaints.print(Text(f"  {visible(answer(question, command, path, options, *more))}"))


def answer(question: Mapping[str, Any], command: str, path: Path, options: ReadingOptions, *more: str) -> str:
    """The command line that answers a question with its guess, or with a placeholder if there is none."""
    about, guess = str(question["about"]), question["guess"]
    said = options.model_dump(exclude_defaults=True)
    if about == "map":
        said["map"] = {**(options.map or {}), **_whole(guess or {})}
    else:
        said[about] = guess if guess is not None else {"threshold": "SCORE"}.get(about, "NAME")
    words = ["tafdil"]
    if (url := connection_url()) and url != os.environ.get("TAFDIL_URL") and command == "upload":
        words += ["--url", url]
    words += ["data", command, str(path), *more]
    for field, column in said.pop("map", {}).items():
        words += ["--map", f"{field}={column}"]
    for name, value in said.items():
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        words += [f"--{name.replace('_', '-')}", shown]
    return shlex.join(words)


def _whole(guess: Mapping[str, str]) -> dict[str, str]:
    """A guess at columns, with a placeholder for each missing field."""
    fields = next((each for each in _FIELDS if set(guess) & set(each[1:])), _FIELDS[-1])
    return {**dict.fromkeys(fields, "COLUMN"), **guess}


def complain_of_data(error: Mapping[str, Any], shown: int) -> None:
    """Prints an error of a file, with at most `shown` details."""
    complain(sentence(error))
    details = error["details"]
    for detail in details[1:shown]:
        complain_more(spoken(detail))
    if len(details) > shown:
        complain_more(say("cli.and_more", n=len(details) - shown))


@contextmanager
def told_of_data(command: str, path: Path, options: ReadingOptions, as_json: bool, *more: str) -> Generator[None]:
    """Exits with 3 and the reason if a local command cannot read its file."""
    try:
        yield
    except DataInvalid as error:
        said = error.as_dict()
        if as_json:
            show_json({"valid": False, **said})
        elif isinstance(error, DataUnclear) and error.question:
            complain(sentence(said))
            ask(said["question"], command, path, options, *more)
        else:
            complain_of_data(said, _SHOWN_ERRORS)
        raise typer.Exit(3) from error
