"""Commands for jobs' files: list, download, merge, push, delete."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tafdil.cli.context import Json, command, connection, emit, show_json
from tafdil.cli.listing import Column, show_listing
from tafdil.cli.names import JobName, find_job
from tafdil.cli.words import in_words
from trainer_core.wording import say

Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="model, merged, checkpoint, log, metrics or manifest. Repeat for more.")
]
# Enough to merge or push a large model.
_PATIENCE_S = 3600.0


@command
def files(job: JobName, kinds: Kinds = None, as_json: Json = False) -> None:
    """Lists the files that a job left behind."""
    with connection() as client:
        found = find_job(client, job).artifacts(kinds or ())
    if as_json:
        show_json(list(found))
        return
    if not found:
        emit(say("cli.no_files"))
        return
    columns = (Column("kind"), Column("size", is_number=True), Column("sha256"), Column("name", is_whole=True))
    show_listing(columns, [(file.kind, f"{file.size_bytes:,}", file.sha256[:12], file.name) for file in found])


@command
def download(
    job: JobName,
    folder: Annotated[Path | None, typer.Argument(help="Target directory; default one named after the job's id.")] = None,
    kinds: Kinds = None,
    as_json: Json = False,
) -> None:
    """Downloads the model, or other files, and checks their hashes. Resumes interrupted downloads."""
    with connection() as client:
        found = find_job(client, job)
        saved = found.download(folder or Path(found.id), kinds or ["model"])
    if as_json:
        show_json([str(path) for path in saved])
        return
    for path in saved:
        emit(str(path))
    if not saved:
        emit(say("cli.no_such_files"))


@command
def merge(job: JobName, as_json: Json = False) -> None:
    """Merges base and adapter into full weights. Download them with `--kind merged`."""
    with connection() as client:
        task = client.wait_task(client.merge(find_job(client, job).id).id, _PATIENCE_S)
    if as_json:
        show_json(task)
    else:
        emit(say("cli.merged", bytes=(task.result or {}).get("size_bytes", 0)))


@command
def push(
    job: JobName,
    name: Annotated[str, typer.Argument(help="The repository's name, without the account.")],
    kind: Annotated[str, typer.Option(help="model or merged.")] = "model",
    public: Annotated[bool, typer.Option("--public", help="Make a newly created repository public.")] = False,
    as_json: Json = False,
) -> None:
    """Pushes a model to the hub configured on the service."""
    with connection() as client:
        task = client.wait_task(client.push(find_job(client, job).id, name, kind, not public).id, _PATIENCE_S)
    show_json(task) if as_json else emit((task.result or {}).get("url", ""))


@command
def delete(
    job: JobName,
    kinds: Kinds = None,
    whole: Annotated[bool, typer.Option("--job", help="Delete the job itself and everything that belongs to it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Deletes checkpoints and merged weights of a finished job, or other files, or the job itself."""
    with connection() as client:
        found = find_job(client, job)
        if not yes:
            chosen = list(kinds or ["checkpoint", "merged"])
            asked = say("cli.delete_job", id=found.id) if whole else say("cli.delete_files", kinds=chosen, id=found.id)
            typer.confirm(in_words(asked, sys.stderr), abort=True, err=True)
        removed = found.delete() if whole else client.delete_artifacts(found.id, kinds or ("checkpoint", "merged"))
    if as_json:
        show_json(removed)
    else:
        emit(say("cli.deleted", n=len(removed.removed), bytes=removed.freed_bytes, kept=len(removed.kept)))


COMMANDS: Sequence[Any] = (files, download, merge, push, delete)
