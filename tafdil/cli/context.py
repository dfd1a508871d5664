"""What every command shares: the connection, where it prints, and how it ends."""

import functools
import os
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console

from tafdil.cli.streams import as_json as json_for
from tafdil.cli.streams import shows_direction
from tafdil.client import Client
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

# A program or a file reads every table whole; only a terminal has an edge.
_UNBOUNDED = 10_000
console = Console(
    highlight=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNBOUNDED,
)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)

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
    try:
        return Client(where.url, key=where.key)
    except UnicodeEncodeError:
        usage("the API key contains characters other than ASCII letters and digits; copy it again")


def connection_url() -> str | None:
    """The service's address, if an option or environment variable sets it."""
    return _connection.get().url


def command(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Ends a command that fails with its code and one clear message, as JSON under `--json`."""

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        as_json = bool(kwargs.get("as_json"))
        try:
            return function(*args, **kwargs)
        except TafdilClientError as error:
            _fail(error, as_json)
        except UnicodeEncodeError as error:
            _fail(_no_text(error), as_json)
        except KeyboardInterrupt:
            complaints.print("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Who read the output has seen enough.
            sys.stderr.close()
            raise typer.Exit(0) from None

    return wrapped


def _no_text(error: UnicodeEncodeError) -> "Usage":
    """A usage error for text that cannot be encoded. Re-raises `error` if the text is valid, because that is a bug here."""
    broken = error.object[error.start : error.end]
    if not all("\ud800" <= letter <= "\udfff" for letter in broken):
        raise error
    escaped = broken.encode("ascii", "backslashreplace").decode()
    return Usage(f"an argument or the spec contains {escaped}, which is not valid text; write it in UTF-8")


def _fail(error: TafdilClientError, as_json: bool) -> NoReturn:
    code = 2 if isinstance(error, Usage) else next((code for kind, code in _CODES if isinstance(error, kind)), 1)
    if as_json:
        told: dict[str, Any] = {"message": str(error), "exit_code": code}
        if isinstance(error, ApiError):
            told |= {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details}
            told |= {"question": error.question} if error.question else {}
        print(json_for({"error": told}, sys.stderr), file=sys.stderr)
    else:
        complain(error.message if isinstance(error, ApiError) else str(error))
        if isinstance(error, ApiError):
            for detail in error.details[1:10]:
                complain("  ", spoken(detail))
            if error.hint:
                complaints.print(error.hint, markup=False)
        if isinstance(error, Unreachable):
            complaints.print("Is it running? `tafdil serve` starts one on this machine; --url names another.", markup=False)
    raise typer.Exit(code) from error


def spoken(detail: Mapping[str, Any]) -> str:
    """An error detail on one line."""
    place = f"line {detail['line']}: " if "line" in detail else ""
    field = f"{detail['field']}: " if detail["field"] else ""
    many = ""
    if detail.get("count", 1) > 1:
        lines = ", ".join(map(str, detail["lines"]))
        more = ", …" if detail["count"] > len(detail["lines"]) else ""
        many = f" (in {detail['count']:,} rows: {lines}{more})"
    return f"{place}{field}{detail['reason']}{many}"


def complain(*parts: str) -> None:
    """A line of an error."""
    lead = "" if parts[0].startswith("  ") else "error: "
    complaints.print(visible(lead + "".join(parts)), style="red", markup=False)


class Usage(TafdilClientError):
    """An invalid command line."""


def usage(message: str) -> NoReturn:
    """Ends an invalid command."""
    raise Usage(message)


def show_json(value: Model | Mapping[str, Any] | list[Any], *, in_a_line: bool = False) -> None:
    """Prints one JSON document on standard output, indented or on one line."""

    def plain(one: Any) -> Any:
        return one.as_dict() if isinstance(one, Model) else one

    shown = [plain(one) for one in value] if isinstance(value, list) else plain(value)
    print(json_for(shown, sys.stdout, None if in_a_line else 2), flush=True)


def say(text: str, style: str | None = None) -> None:
    """A line for a person; text of users in it is `told` first."""
    console.print(text, style=style, markup=False)


def told(text: object) -> str:
    """User text that cannot move the cursor. On a terminal it is also isolated from the text around it."""
    return isolated(str(text)) if shows_direction(sys.stdout) else visible(str(text))
