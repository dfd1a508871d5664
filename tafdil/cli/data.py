"""`tafdil data`: check a file here, upload it, look at what was uploaded."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tafdil.cli.context import Json, command, complain, connection, console, say, show_json, told, usage
from tafdil.text import visible
from trainer_core.errors import DataInvalid
from trainer_core.rows import check_file

app = typer.Typer(no_args_is_help=True)
DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="A dataset's id.")]
_SHOWN_ERRORS = 20
_PATIENCE_S = 300.0


@app.command()
@command
def check(path: Annotated[Path, typer.Argument(help="A file of rows.")], as_json: Json = False) -> None:
    """Checks every row of a file on this machine; nothing is sent. Ends with 3 when a row is broken."""
    try:
        report = check_file(path)
    except DataInvalid as error:
        if as_json:
            show_json({"valid": False, **error.as_dict()})
        else:
            complain(error.message)
            for detail in error.details[1:_SHOWN_ERRORS]:
                complain(f"  line {detail.line}: " if detail.line else "  ", f"{detail.field}: {detail.reason}")
            if len(error.details) > _SHOWN_ERRORS:
                complain(f"  and {len(error.details) - _SHOWN_ERRORS} more")
        raise typer.Exit(3) from error
    found = {name: getattr(report, name) for name in ("format", "kind", "train_rows", "validation_rows", "desirable_rows")}
    if as_json:
        show_json({"valid": True, **found})
        return
    kinds = {"kto": "labelled answers, for KTO", "pairs": "preference pairs, for IPO and CPO, and for KTO"}
    say(f"good: {report.train_rows} rows, {report.validation_rows} for validation; {kinds[str(report.kind)]}")
    if report.kind == "kto":
        say(f"{report.desirable_rows} are desirable, {report.train_rows - report.desirable_rows} are not")


@app.command()
@command
def upload(
    path: Annotated[Path, typer.Argument(help="A file of rows.")],
    name: Annotated[str | None, typer.Option(help="A name for people; default the file's.")] = None,
    as_json: Json = False,
) -> None:
    """Uploads a file; the service checks every row."""
    if not path.is_file():
        usage(f"there is no file {path}")
    with connection() as client:
        dataset = client.upload_dataset(path, name)
    show_json(dataset) if as_json else say(f"{dataset.id}  {dataset.train_rows} rows ({dataset.kind})")


@app.command("list")
@command
def list_datasets(as_json: Json = False) -> None:
    """Lists uploaded datasets, newest first."""
    with connection() as client:
        found = list(client.datasets())
    if as_json:
        show_json(list(found))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("dataset", "name", "kind", "rows", "validation", "bytes"):
        table.add_column(column, justify="left" if column in ("dataset", "name", "kind") else "right")
    for one in found:
        counts = (f"{one.train_rows:,}", f"{one.validation_rows:,}", f"{one.size_bytes:,}")
        table.add_row(*map(Text, (one.id, told(one.name or ""), one.kind, *counts)))
    console.print(table if found else "There are no datasets yet.")


@app.command()
@command
def show(
    dataset: DatasetId,
    first: Annotated[int, typer.Option(min=1, help="The first row to show.")] = 1,
    count: Annotated[int, typer.Option(min=1, max=200, help="How many rows.")] = 3,
    as_json: Json = False,
) -> None:
    """Shows a dataset and some of its rows."""
    with connection() as client:
        found, rows = client.dataset(dataset), client.rows(dataset, first, count)
    if as_json:
        show_json({**found.as_dict(), "rows": rows})
        return
    say(f"{found.id}  {told(found.name or '')}  {found.train_rows:,} rows ({found.kind}, {found.format})")
    for row in rows:
        say(f"\nrow {row['row']}", "bold")
        for field in ("prompt", "completion", "label", "chosen", "rejected"):
            if field in row:
                say(f"{field:>11}  {told(row[field])}")


@app.command()
@command
def preview(
    dataset: DatasetId,
    model: Annotated[str, typer.Option(help="The model whose tokenizer and template are used.")] = "tafdil/tiny-arabic-qwen",
    first: Annotated[int, typer.Option(min=1, help="The first row to show.")] = 1,
    count: Annotated[int, typer.Option(min=1, max=50, help="How many rows.")] = 2,
    as_json: Json = False,
) -> None:
    """Shows rows as a model sees them: the prompt, and underlined the tokens that the loss is taken of."""
    with connection() as client:
        task = client.preview(dataset, model, first_row=first, rows=count)
        result = (task if task.result else client.wait_task(task.id, _PATIENCE_S)).result or {}
    if as_json:
        show_json(result)
        return
    for row in result["rows"]:
        for name, tokens in row["answers"].items():
            say(f"\nrow {row['row']}, {name}: {len(row['prompt'])} + {len(tokens)} tokens", "bold")
            text = Text()
            for token in [*row["prompt"], *tokens]:
                text.append(visible(token["text"]), style="underline" if token["trained"] else "dim")
            console.print(text)


@app.command()
@command
def delete(dataset: DatasetId, as_json: Json = False) -> None:
    """Deletes a dataset. Refused while a job that is not over uses it."""
    with connection() as client:
        removed = client.delete_dataset(dataset)
    show_json(removed) if as_json else say(f"deleted, {removed['freed_bytes']:,} bytes")
