"""`tafdil data`: check, convert and upload files, and inspect datasets."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.text import Text

from tafdil.cli.context import Json, command, complain, connection, console, emit, show_json, told, usage
from tafdil.cli.data_report import report
from tafdil.cli.listing import Column, show_listing
from tafdil.cli.names import DatasetName, find_dataset
from tafdil.cli.reading import (
    Encoding,
    Maps,
    OnInvalid,
    Sheet,
    Threshold,
    ask,
    options_of,
    tell_reading,
    told_of_data,
)
from tafdil.cli.words import sentence
from tafdil.errors import InvalidRequest
from tafdil.models import Reading
from tafdil.text import visible
from trainer_core.config import SETTINGS
from trainer_core.row_conversion import convert as convert_file
from trainer_core.row_rules import LABELLED
from trainer_core.rows import RowReport, check_file
from trainer_core.wording import say

app = typer.Typer(no_args_is_help=True)
app.command()(report)
_REPORTED = (
    *("format", "kind", "train_rows", "validation_rows", "desirable_rows"),
    *("file_kind", "encoding", "layout", "mapping", "unused", "skipped_rows"),
)
_PATIENCE_S = 300.0


@app.command()
@command
def check(
    path: Annotated[Path, typer.Argument(help="A file of rows: JSONL, JSON, CSV, TSV, Excel, Parquet and more.")],
    maps: Maps = None,
    encoding: Encoding = None,
    sheet: Sheet = None,
    threshold: Threshold = None,
    on_invalid: OnInvalid = "refuse",
    as_json: Json = False,
) -> None:
    """Checks every row of a file on this machine; nothing is sent. Exits with 3 if a row is invalid."""
    options = options_of(maps, encoding, sheet, threshold, on_invalid)
    with told_of_data("check", path, options, as_json):
        report = check_file(path, options=options)
    found = _reported(report)
    if as_json:
        show_json({"valid": True, **found})
        return
    is_labelled = report.kind == LABELLED
    takers = [each.title for each in SETTINGS if each.takes(LABELLED)]
    what = say("cli.labelled_answers", methods=takers) if is_labelled else say("cli.preference_pairs")
    emit(say("cli.file_good", rows=report.train_rows, validation=report.validation_rows, what=what))
    if is_labelled:
        emit(say("cli.labels", wanted=report.desirable_rows, unwanted=report.train_rows - report.desirable_rows))
    tell_reading(found)


@app.command()
@command
def upload(
    path: Annotated[Path, typer.Argument(help="A file of rows: JSONL, JSON, CSV, TSV, Excel, Parquet and more.")],
    name: Annotated[str | None, typer.Option(help="A name for people; default the file's.")] = None,
    maps: Maps = None,
    encoding: Encoding = None,
    sheet: Sheet = None,
    threshold: Threshold = None,
    on_invalid: OnInvalid = "refuse",
    as_json: Json = False,
) -> None:
    """Uploads a file; the service checks every row."""
    if not path.is_file():
        usage(say("cli.no_file", path=str(path)))
    options = options_of(maps, encoding, sheet, threshold, on_invalid)
    with connection() as client:
        try:
            dataset = client.upload_dataset(path, name, **cast("Reading", options.model_dump(exclude_defaults=True)))
        except InvalidRequest as error:
            if as_json or error.question is None:
                raise
            complain(sentence(vars(error)))
            ask(error.question, "upload", path, options)
            raise typer.Exit(3) from error
    if as_json:
        show_json(dataset)
        return
    emit(say("cli.uploaded", id=dataset.id, rows=dataset.train_rows, kind=dataset.kind))
    tell_reading(dataset.as_dict())
    if dataset.skipped_rows:
        emit(say("cli.see_broken", command=f"tafdil data broken {dataset.id} broken.csv"))


@app.command()
@command
def convert(
    path: Annotated[Path, typer.Argument(help="A file of rows: JSONL, JSON, CSV, TSV, Excel, Parquet and more.")],
    out: Annotated[Path, typer.Argument(help="The file to write, in Tafdil's own format.")],
    maps: Maps = None,
    encoding: Encoding = None,
    sheet: Sheet = None,
    threshold: Threshold = None,
    on_invalid: OnInvalid = "refuse",
    as_json: Json = False,
) -> None:
    """Converts a file to Tafdil's own format on this machine; nothing is sent."""
    options = options_of(maps, encoding, sheet, threshold, on_invalid)
    if out.exists():
        usage(say("cli.file_exists", path=str(out)))
    part = out.with_name(f".{out.name}.part")
    try:
        with told_of_data("convert", path, options, as_json, str(out)):
            report = convert_file(path, part, options)
        part.rename(out)
    except OSError as error:
        usage(say("cli.cannot_write", path=str(out), problem=error.strerror or ""))
    finally:
        part.unlink(missing_ok=True)
    found = _reported(report)
    if as_json:
        show_json({"out": str(out), **found})
        return
    rows = {"rows": report.train_rows, "validation": report.validation_rows}
    emit(say("cli.converted", path=str(out), **rows, kind=report.kind))
    tell_reading(found)


@app.command()
@command
def broken(
    dataset: DatasetName,
    out: Annotated[Path, typer.Argument(help="The CSV file to write.")],
    as_json: Json = False,
) -> None:
    """Saves the rows that an upload skipped (`--on-invalid skip`), to correct them in a spreadsheet."""
    with connection() as client:
        table = client.broken_rows(find_dataset(client, dataset).id)
    try:
        out.write_bytes(table)
    except OSError as error:
        usage(say("cli.cannot_write", path=str(out), problem=error.strerror or ""))
    show_json({"out": str(out), "size_bytes": len(table)}) if as_json else emit(
        say("cli.written", path=str(out), bytes=len(table))
    )


def _reported(report: RowReport) -> dict[str, Any]:
    """A report as the API returns it."""
    return {name: getattr(report, name) for name in _REPORTED} | {
        "warnings": [warning.as_dict() for warning in report.warnings]
    }


@app.command("list")
@command
def list_datasets(as_json: Json = False) -> None:
    """Lists uploaded datasets, newest first."""
    with connection() as client:
        found = list(client.datasets())
    if as_json:
        show_json(list(found))
        return
    if not found:
        emit(say("cli.no_datasets"))
        return
    rows: list[tuple[str, ...]] = []
    for one in found:
        counts = (f"{one.train_rows:,}", f"{one.validation_rows:,}", f"{one.size_bytes:,}")
        rows.append((one.id, one.name or "", one.kind, *counts))
    numbers = [Column(name, is_number=True) for name in ("rows", "validation", "bytes")]
    show_listing([Column("dataset", is_whole=True), Column("name"), Column("kind"), *numbers], rows)


@app.command()
@command
def show(
    dataset: DatasetName,
    first: Annotated[int, typer.Option(min=1, help="The first row to show.")] = 1,
    count: Annotated[int, typer.Option(min=1, max=200, help="How many rows.")] = 3,
    as_json: Json = False,
) -> None:
    """Shows a dataset and some of its rows."""
    with connection() as client:
        found = find_dataset(client, dataset)
        rows = client.rows(found.id, first, count)
    if as_json:
        show_json({**found.as_dict(), "rows": rows})
        return
    emit(f"{found.id}  {told(found.name or '')}  {found.train_rows:,} rows ({found.kind}, {found.format})")
    for row in rows:
        emit(f"\nrow {row['row']}", "bold")
        for field in ("prompt", "completion", "label", "chosen", "rejected"):
            if field in row:
                emit(f"{field:>11}  {told(row[field])}")


@app.command()
@command
def preview(
    dataset: DatasetName,
    model: Annotated[str, typer.Option(help="Its tokenizer and template are used.")] = "tafdil/tiny-arabic-qwen-2",
    first: Annotated[int, typer.Option(min=1, help="The first row to show.")] = 1,
    count: Annotated[int, typer.Option(min=1, max=50, help="How many rows.")] = 2,
    as_json: Json = False,
) -> None:
    """Shows rows as a model sees them: the prompt, and underlined the tokens that count towards the loss."""
    with connection() as client:
        task = client.preview(find_dataset(client, dataset).id, model, first_row=first, rows=count)
        result = (task if task.result else client.wait_task(task.id, _PATIENCE_S)).result or {}
    if as_json:
        show_json(result)
        return
    for row in result["rows"]:
        for name, tokens in row["answers"].items():
            emit(f"\nrow {row['row']}, {name}: {len(row['prompt'])} + {len(tokens)} tokens", "bold")
            text = Text()
            for token in [*row["prompt"], *tokens]:
                text.append(visible(token["text"]), style="underline" if token["trained"] else "dim")
            console.print(text)


@app.command()
@command
def delete(dataset: DatasetName, as_json: Json = False) -> None:
    """Deletes a dataset. Refused while an unfinished job uses it."""
    with connection() as client:
        removed = client.delete_dataset(find_dataset(client, dataset).id)
    show_json(removed) if as_json else emit(say("cli.dataset_deleted", bytes=removed["freed_bytes"]))
