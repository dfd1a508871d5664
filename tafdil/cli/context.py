"""Shared by all commands: the connection, the output, and exit codes."""

import functools
import io
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
from tafdil.cli.words import VARIABLE, in_words, language, sentence, unknown_language
from tafdil.client import Client
from tafdil.errors import (
    ApiError,
    Conflict,
    Forbidden,
    InvalidRequest,
    JobFailed,
    NotFound,
    RateLimited,
    TafdilClientError,
    TooLarge,
    Unauthorized,
    Unreachable,
    WaitTimeout,
)
from tafdil.models import JobFields, Model
from tafdil.text import isolated, visible
from trainer_core.wording import LANGUAGES, Message, is_known, say

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

# Tables are never cut for programs and files; only a terminal has a width.
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
    """The service's address and key, from the options before the command or their variables."""

    url: str | None
    key: str | None


_connection: ContextVar[Connection] = ContextVar("connection", default=Connection(None, None))  # noqa: B039  # frozen


def connect_to(where: Connection) -> None:
    """Sets the service for the command that follows."""
    _connection.set(where)


def connection() -> Client:
    """A client for the running command."""
    where = _connection.get()
    try:
        return Client(where.url, key=where.key, language=language())
    except UnicodeEncodeError:
        usage(say("cli.key_not_ascii"))


def connection_url() -> str | None:
    """The service's address, if an option or environment variable sets it."""
    return _connection.get().url


def command(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Ends a command that fails with its code and one clear message, as JSON under `--json`."""

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        as_json = bool(kwargs.get("as_json"))
        try:
            if (wrong := unknown_language()) is not None:
                usage(say("cli.unknown_language", variable=VARIABLE, value=wrong, known=list(LANGUAGES)))
            return function(*args, **kwargs)
        except TafdilClientError as error:
            _fail(error, as_json)
        except UnicodeEncodeError as error:
            _fail(_no_text(error), as_json)
        except KeyboardInterrupt:
            remark(say("cli.interrupted"))
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of the output has closed it.
            sys.stderr.close()
            raise typer.Exit(0) from None

    return wrapped


def _no_text(error: UnicodeEncodeError) -> "Usage":
    """A usage error for text that cannot be encoded. Re-raises `error` if the text is valid, because that is a bug here."""
    broken = error.object[error.start : error.end]
    if not all("\ud800" <= letter <= "\udfff" for letter in broken):
        raise error
    escaped = broken.encode("ascii", "backslashreplace").decode()
    return Usage(say("cli.not_text", text=escaped))


def _fail(error: TafdilClientError, as_json: bool) -> NoReturn:
    code = 2 if isinstance(error, Usage) else next((code for kind, code in _CODES if isinstance(error, kind)), 1)
    message = message_of(error)
    if as_json:
        told: dict[str, Any] = {"message": plain(message), "exit_code": code}
        if isinstance(error, ApiError):
            told |= {"code": error.code, "hint": plain(hint_of(vars(error))), "details": error.details}
            told |= {"question": error.question} if error.question else {}
        print(json_for({"error": told}, sys.stderr), file=sys.stderr)
    else:
        complain(message)
        if isinstance(error, ApiError):
            for detail in error.details[1:10]:
                complain_more(spoken(detail))
            if hint := hint_of(vars(error)):
                remark(hint)
        if isinstance(error, Unreachable):
            remark(say("cli.unreachable_hint"))
    raise typer.Exit(code) from error


def message_of(error: TafdilClientError) -> str:
    """What an error says."""
    match error:
        case ApiError():
            said = sentence(vars(error))
            # The service's sentence may name headers and routes.
            own = f"cli.message.{error.message_code}"
            return Message(own, error.params) if isinstance(said, Message) and is_known(own) else said
        case JobFailed():
            return say("cli.job_ended", id=error.job.id, standing=standing(error.job))
        case Unreachable() if error.url:
            return say("cli.no_answer", url=error.url, problem=error.reason)
        case _:
            first = error.args[0] if error.args else ""
            return first if isinstance(first, Message) else say("cli.client_error", problem=str(error))


def hint_of(error: Mapping[str, Any]) -> str:
    """What to do about an error of the service, for a person at a terminal."""
    own, general = f"cli.hint.{error['code']}", f"hint.{error['code']}"
    if isinstance(error["hint"], Message) or not error["hint"]:
        return error["hint"]
    return say(own) if is_known(own) else say(general) if is_known(general) else error["hint"]


def plain(message: str) -> str:
    """A message as a JSON value."""
    return in_words(message, io.StringIO()) if isinstance(message, Message) else message


def standing(job: JobFields) -> Message:
    """Where a job stands."""
    match job.state:
        case "queued" if job.queue_position:
            return say("cli.queued_at", position=job.queue_position)
        case "running":
            phase = f"run_phase.{job.phase}"
            what: str = say(phase) if is_known(phase) else job.phase or say("cli.state.running")
            where = say("cli.at_step", what=what, step=job.step, steps=job.total_steps) if job.total_steps else what
            asked = f"cli.asked.{job.requested}"
            return say("cli.asked_for", what=where, asked=say(asked)) if is_known(asked) else say("cli.runs", what=where)
        case "failed" if job.error:
            return say("cli.failed_because", reason=sentence(job.error))
        case state:
            known = say(f"cli.state.{state}")
            return say("cli.with_effect", state=known, effect=say(f"cli.effect.{job.effect}")) if job.effect else known


def spoken(detail: Mapping[str, Any]) -> str:
    """An error detail on one line."""
    found = sentence(detail, "reason", "code")
    if detail["field"]:
        found = say("request_invalid", field=detail["field"], reason=found)
    if "line" in detail:
        found = say("detail.line", line=detail["line"], reason=found)
    if detail.get("count", 1) > 1:
        lines = ", ".join(map(str, detail["lines"])) + (", …" if detail["count"] > len(detail["lines"]) else "")
        found = say("cli.in_rows", n=detail["count"], lines=lines, reason=found)
    return found


def complain(message: str) -> None:
    """Prints the first line of an error."""
    complaints.print(in_words(say("cli.error", message=message), sys.stderr), style="red", markup=False)


def complain_more(message: str) -> None:
    """Prints a further line of an error."""
    complaints.print(f"  {in_words(message, sys.stderr)}", style="red", markup=False)


def remark(message: str) -> None:
    """Prints a remark for the user beside the output."""
    complaints.print(in_words(message, sys.stderr), markup=False)


class Usage(TafdilClientError):
    """An invalid command line."""


def usage(message: str) -> NoReturn:
    """Ends the command with a usage error."""
    raise Usage(message)


def show_json(value: Model | Mapping[str, Any] | list[Any], *, in_a_line: bool = False) -> None:
    """Prints one JSON document on standard output, indented or on one line."""

    def plain(one: Any) -> Any:
        return one.as_dict() if isinstance(one, Model) else one

    shown = [plain(one) for one in value] if isinstance(value, list) else plain(value)
    print(json_for(shown, sys.stdout, None if in_a_line else 2), flush=True)


def emit(text: str, style: str | None = None) -> None:
    """Prints a line for a person: a `Message` in their language, or text whose user-supplied parts went through `told`."""
    console.print(in_words(text, sys.stdout) if isinstance(text, Message) else text, style=style, markup=False)


def warn(warning: Mapping[str, Any]) -> None:
    """A warning of a run."""
    emit(say("cli.warning", message=sentence(warning)), "yellow")


def told(text: object) -> str:
    """User text made safe to print: it cannot move the cursor and, on a terminal, is isolated from the text around it."""
    return isolated(str(text)) if shows_direction(sys.stdout) else visible(str(text))
