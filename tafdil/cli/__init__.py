"""The command line: `tafdil`. Every command has `--json` for programs, and an exit code that says what went wrong.

0    done; if the command waited for a job, it succeeded
1    the job that the command waited for did not succeed, or an unexpected error
2    an invalid command line
3    refused: the spec, the data or the model must change first
4    no such job, dataset or file
5    the action does not apply to the current state
6    a missing or invalid key, or one without permission
7    too many requests, or a quota reached; retry later
8    the service does not answer, or fails
124  timed out
130  interrupted
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tafdil.cli import answers, data, files, jobs, keys, methods, service, streams
from tafdil.cli.context import Connection, connect_to


class _Program(TyperGroup):
    """The command line. It prepares the standard streams before anything reads or prints."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        streams.prepare()
        return super().main(*args, **kwargs)


app = typer.Typer(
    cls=_Program,
    help="Aligns Arabic Qwen models with preference data by KTO, IPO and CPO.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def main(
    url: Annotated[
        str | None, typer.Option(envvar="TAFDIL_URL", help="The service; default this machine's port 8000.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="TAFDIL_API_KEY", help="An API key. The variable keeps it out of process lists.")
    ] = None,
) -> None:
    """Aligns Arabic Qwen models with preference data by KTO, IPO and CPO."""
    connect_to(Connection(url, key))


for module in (jobs, answers, methods, files, service):
    for function in module.COMMANDS:
        app.command()(function)
app.add_typer(data.app, name="data", help="Check, upload and look at datasets.")
app.add_typer(keys.app, name="keys", help="Make, list and revoke API keys (needs the admin key).")
