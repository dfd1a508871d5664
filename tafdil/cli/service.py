"""Commands for the service itself: run it, demonstrate it, diagnose it."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tafdil.cli.context import (
    Json,
    command,
    complain,
    complaints,
    connection,
    console,
    emit,
    message_of,
    plain,
    remark,
    show_json,
)
from tafdil.cli.doctor import examine
from tafdil.cli.words import in_words
from tafdil.client import Client
from tafdil.errors import TafdilClientError
from tafdil.local_stack import LocalStack
from trainer_core.wording import say

DataDir = Annotated[Path | None, typer.Option(help="Where datasets, runs, logs and the database are kept.")]
ModelsDir = Annotated[Path | None, typer.Option(help="Your models: <models-dir>/Qwen/Qwen2.5-0.5B-Instruct.")]


class _Ended(Exception):
    """A signal asked the command to end."""


@contextmanager
def _ending_on_signals() -> Generator[None]:
    """Turns the first INT or TERM into `_Ended`; later ones are ignored while the stack stops in order."""

    def end(number: int, _: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise _Ended(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    yield


@command
def serve(
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The API's port; 0 picks a free one.")] = 8000,
    as_json: Json = False,
) -> None:
    """Runs the whole service on this machine until Ctrl-C: API, dispatcher, workers, embedded broker and database."""
    folder = data_dir or Path("tafdil-data")
    stack = LocalStack(folder, models_dir, port, say=complaints.print)
    try:
        with _ending_on_signals(), stack:
            if as_json:
                show_json({"url": stack.url, "data_dir": str(stack.data_dir), "keys_are_on": stack.has_keys})
            else:
                emit(say("cli.serves", url=stack.url, docs=f"{stack.url}/docs"))
                emit(say("cli.serves_data", path=str(stack.data_dir)))
                # What to know before exposing the service to others.
                emit(say("cli.exposed_with_keys" if stack.has_keys else "cli.exposed_without_keys"))
                console.print()
            while True:
                stack.watch()
                time.sleep(1)
    except _Ended:
        remark(say("cli.stopped"))
    except TafdilClientError as error:
        complain(message_of(error))
        raise typer.Exit(1) from error


@command
def demo(
    data_dir: DataDir = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The API's port; 0 picks a free one.")] = 0,
    as_json: Json = False,
) -> None:
    """Trains the small shipped model with KTO, IPO and CPO, compares the answers, and leaves nothing running."""
    from tafdil.demo import VARIABLES, run

    shown = complaints if as_json else console
    with tempfile.TemporaryDirectory(prefix="tafdil-demo-", ignore_cleanup_errors=True) as temporary:
        folder = data_dir or Path(temporary)
        # A GPU trains one job at a time. Without one, two jobs train at the same time.
        workers = 1 if shutil.which("nvidia-smi") else 2
        stack = LocalStack(folder, None, port, say=complaints.print, train_workers=workers, variables=VARIABLES)
        try:
            with _ending_on_signals():
                shown.print("Starting the local stack ...")
                with stack, Client(stack.url, key=os.environ.get("TAFDIL_ADMIN_KEY")) as client:
                    results = run(client, shown, stack.watch)
                    shown.print("\nStopping ...")
        except _Ended as ended:
            remark(say("cli.stopped_by", signal=str(ended)))
            raise typer.Exit(130) from ended
        except TafdilClientError as error:
            complain(message_of(error))
            raise typer.Exit(1) from error
    if as_json:
        show_json(results)
    shown.print("Done. Nothing is left running.")


@command
def doctor(
    data_dir: Annotated[Path, typer.Option(help="Where the service keeps its data.")] = Path("tafdil-data"),
    as_json: Json = False,
) -> None:
    """Checks this machine and the service, and says what is wrong and how to fix it. Exits with 1 if something is."""
    with connection() as client:
        found = list(examine(client, data_dir))
    if as_json:
        show_json([{**vars(one), "told": plain(one.told), "advice": plain(one.advice)} for one in found])
    else:
        for one in found:
            mark, style = {True: ("ok ", "green"), False: ("BAD", "red"), None: ("-  ", "yellow")}[one.is_good]
            emit(f"{mark} {one.what:16} {in_words(one.told, sys.stdout)}", style)
            if not one.is_good and one.advice:
                emit(f"    {'':16} {in_words(one.advice, sys.stdout)}")
    if any(one.is_good is False for one in found):
        raise typer.Exit(1)


COMMANDS = (serve, demo, doctor)
