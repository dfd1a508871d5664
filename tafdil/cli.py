"""The command line: `tafdil serve` and `tafdil demo`."""

import signal
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tafdil.client import Client
from tafdil.errors import TafdilClientError
from tafdil.local_stack import LocalStack

app = typer.Typer(
    help="Aligns Arabic Qwen models with preference data by KTO, IPO and CPO.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
complaints = Console(stderr=True)

DataDir = Annotated[Path | None, typer.Option(help="Where datasets, runs, logs and the database are kept.")]
ModelsDir = Annotated[Path | None, typer.Option(help="Your models: <models-dir>/Qwen/Qwen2.5-0.5B-Instruct.")]


class _Ended(Exception):
    """A signal asked to end."""


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


@app.callback()
def main() -> None:
    """Aligns Arabic Qwen models with preference data by KTO, IPO and CPO."""


@app.command()
def serve(
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The API's port; 0 takes a free one.")] = 8000,
) -> None:
    """Runs the whole service on this machine until Ctrl-C: API, dispatcher, workers, embedded broker and database."""
    folder = data_dir or Path("tafdil-data")
    stack = LocalStack(folder, models_dir, port, say=complaints.print)
    try:
        with _ending_on_signals(), stack:
            console.print(f"Tafdil serves {stack.url} (documentation: {stack.url}/docs)", highlight=False)
            console.print(
                f"Data and logs: {stack.data_dir}. Only this machine can reach it. Ctrl-C stops it.", highlight=False
            )
            while True:
                stack.watch()
                time.sleep(1)
    except _Ended:
        console.print("Stopped. What was running goes on from its checkpoint at the next start.")
    except TafdilClientError as error:
        complaints.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error


@app.command()
def demo(
    data_dir: DataDir = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The API's port; 0 takes a free one.")] = 0,
) -> None:
    """Trains the small shipped model with KTO, IPO and CPO, compares the answers, and leaves nothing running."""
    from tafdil.demo import run

    with tempfile.TemporaryDirectory(prefix="tafdil-demo-", ignore_cleanup_errors=True) as temporary:
        stack = LocalStack(data_dir or Path(temporary), None, port, say=complaints.print)
        try:
            with _ending_on_signals():
                console.print("Starting the local stack ...")
                with stack, Client(stack.url) as client:
                    run(client, console, stack.watch)
                    console.print("\nStopping ...")
        except _Ended as ended:
            complaints.print(f"stopped by {ended}")
            raise typer.Exit(130) from ended
        except TafdilClientError as error:
            complaints.print(f"error: {error}", style="red", markup=False, highlight=False)
            raise typer.Exit(1) from error
    console.print("Done. Nothing is left running.")


if __name__ == "__main__":
    app()
