"""What every command shares: the connection, where it prints, and how it ends."""

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console

from tafdil.client import Client, Job
from tafdil.errors import (
    ApiError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    RateLimited,
    TafdilClientError,
    TooLarge,
    Unauthorized,
    Unreachable,
    WaitTimeout,
)
from tafdil.models import Model
from tafdil.text import isolated, visible

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="An id, its beginning, a name, or `last` for the newest job.")]

# A program or a file reads every table whole; only a terminal has an edge.
_UNBOUNDED = 10_000
console = Console(
    highlight=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNBOUNDED,
)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)

_SHORTEST_PREFIX = 4
_LOOKED_THROUGH = 1000
_CODES: tuple[tuple[type[TafdilClientError], int], ...] = (
    (InvalidRequest, 3),
    (TooLarge, 3),
    (NotFound, 4),
    (Conflict, 5),
    (Unauthorized, 6),
    (Forbidden, 6),
    (RateLimited, 7),
    (Unreachable, 8),
    (ApiError, 8),
    (WaitTimeout, 124),
)


@dataclass(frozen=True)
class Connection:
    """Where the service is, from the options before the command or their variables."""

    url: str | None
    key: str | None


_connection: ContextVar[Connection] = ContextVar("connection", default=Connection(None, None))  # noqa: B039  # frozen


def connect_to(where: Connection) -> None:
    """Sets where the command that follows finds the service."""
    _connection.set(where)


def connection() -> Client:
    """A client for the command that runs."""
    where = _connection.get()
    return Client(where.url, key=where.key)


def command(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Ends a command that fails with its code and one clear message, as JSON under `--json`."""

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        as_json = bool(kwargs.get("as_json"))
        try:
            return function(*args, **kwargs)
        except TafdilClientError as error:
            _fail(error, as_json)
        except KeyboardInterrupt:
            complaints.print("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Who read the output has seen enough.
            sys.stderr.close()
            raise typer.Exit(0) from None

    return wrapped


def _fail(error: TafdilClientError, as_json: bool) -> NoReturn:
    code = 2 if isinstance(error, Usage) else next((code for kind, code in _CODES if isinstance(error, kind)), 1)
    if as_json:
        told: dict[str, Any] = {"message": str(error), "exit_code": code}
        if isinstance(error, ApiError):
            told |= {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details}
        print(json.dumps({"error": told}, ensure_ascii=False), file=sys.stderr)
    else:
        complain(error.message if isinstance(error, ApiError) else str(error))
        if isinstance(error, ApiError):
            for detail in error.details[1:10]:
                complain(
                    f"  line {detail['line']}: " if "line" in detail else "  ", f"{detail['field']}: {detail['reason']}"
                )
            if error.hint:
                complaints.print(error.hint, markup=False)
        if isinstance(error, Unreachable):
            complaints.print("Is it running? `tafdil serve` starts one on this machine; --url names another.", markup=False)
    raise typer.Exit(code) from error


def complain(*parts: str) -> None:
    """A line of an error."""
    lead = "" if parts[0].startswith("  ") else "error: "
    complaints.print(visible(lead + "".join(parts)), style="red", markup=False)


class Usage(TafdilClientError):
    """A command line that cannot be meant."""


def usage(message: str) -> NoReturn:
    """Ends a command that cannot be meant."""
    raise Usage(message)


def show_json(value: Model | Mapping[str, Any] | list[Any]) -> None:
    """One JSON document on standard output."""

    def plain(one: Any) -> Any:
        return one.as_dict() if isinstance(one, Model) else one

    shown = [plain(one) for one in value] if isinstance(value, list) else plain(value)
    print(json.dumps(shown, ensure_ascii=False, indent=2), flush=True)


def say(text: str, style: str | None = None) -> None:
    """A line for a person; text of users in it is `told` first."""
    console.print(text, style=style, markup=False)


def told(text: object) -> str:
    """Text of a user, set apart: it neither moves the cursor nor reorders what stands beside it."""
    return isolated(str(text))


def find_job(client: Client, name: str) -> Job:
    """The job that a person means. Raises `NotFound`."""
    if len(name) == 32 and all(letter in "0123456789abcdef" for letter in name):
        return client.job(name)
    if name == "last":
        for job in client.jobs(limit=1):
            return job
        raise NotFound(404, {"code": "not_found", "message": "there is no job yet", "hint": "Submit one: tafdil submit"})
    is_prefix = len(name) >= _SHORTEST_PREFIX
    found = [
        job for job in client.jobs(limit=_LOOKED_THROUGH) if job.name == name or (is_prefix and job.id.startswith(name))
    ]
    if len({job.id for job in found if job.name != name}) > 1:
        usage(f"several jobs begin with {name}: {', '.join(job.id[:12] for job in found[:5])}")
    if not found:
        message = f"none of the last {_LOOKED_THROUGH} jobs has the name, or an id that begins with, {name!r}"
        raise NotFound(404, {"code": "not_found", "message": message, "hint": "See them with: tafdil list"})
    return found[0]
