"""The language of replies: negotiates it, and words stored sentences in it when they are sent.

Errors, warnings and events are stored once, in English, with their code and values. Those of earlier versions have no code
and are sent unchanged.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer_core.errors import CODES
from trainer_core.wording import Language, is_known, worded

_WORDED_TYPES = ("application/json", "text/event-stream")
_language: ContextVar[Language] = ContextVar("language", default="en")


def language() -> Language:
    """The language of the reply to the current request."""
    return _language.get()


def preferred(accepted: str) -> Language:
    """The language for an `Accept-Language` (RFC 9110): the first of the most preferred ones, or else English."""
    best: Language = "en"
    best_quality = 0.0
    for part in accepted.split(","):
        tag, _, parameters = part.partition(";")
        name = tag.strip().lower().partition("-")[0]
        known: Language | None = "ar" if name == "ar" else "en" if name in ("en", "*") else None
        if known and (quality := _quality(parameters)) > best_quality:
            best, best_quality = known, quality
    return best


@contextmanager
def speaking(accepted: str) -> Generator[Language]:
    """Words everything sent within the block for an `Accept-Language`."""
    chosen = preferred(accepted)
    token = _language.set(chosen)
    try:
        yield chosen
    finally:
        _language.reset(token)


def _quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return min(1.0, max(0.0, float(value)))
    except ValueError:
        return 0.0


class Languages:
    """ASGI middleware. Chooses the language of each reply, and names it in replies with sentences."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with speaking(Headers(scope=scope).get("accept-language", "")) as chosen:

            async def send_named(message: Message) -> None:
                if message["type"] == "http.response.start":
                    name(MutableHeaders(scope=message), chosen)
                await send(message)

            await self._app(scope, receive, send_named if _has_sentences(scope["path"]) else send)


def _has_sentences(path: str) -> bool:
    return not path.startswith(("/assets", "/static", "/docs", "/openapi"))


def name(headers: MutableHeaders, chosen: Language) -> None:
    """Adds the headers that name a reply's language."""
    if headers.get("content-type", "").startswith(_WORDED_TYPES) and "content-language" not in headers:
        headers["Content-Language"] = chosen
        headers.add_vary_header("Accept-Language")


def in_language(stored: Mapping[str, Any], text: str, code: str) -> dict[str, Any]:
    """A stored sentence in the reply's language.

    Args:
        stored: an object with the sentence, its code and its `params`.
        text: the key of the sentence.
        code: the key of its code.
    """
    found = dict(stored)
    params = found.get("params")
    # English is stored. A sentence whose values have other names in another version stays unchanged.
    if language() != "en" and isinstance(params, dict) and is_known(found.get(code)):
        with suppress(KeyError):
            found[text] = worded(found[code], cast("dict[str, Any]", params), language())
    return found


def worded_error(error: Mapping[str, Any]) -> dict[str, Any]:
    """An error in the reply's language."""
    found = in_language(error, "message", "message_code")
    if language() != "en" and found.get("code") in CODES:
        found["hint"] = worded(f"hint.{found['code']}", {}, language())
    if "details" in found:
        found["details"] = [worded_detail(each) for each in found["details"]]
    return found


def worded_detail(detail: Mapping[str, Any]) -> dict[str, Any]:
    """A detail of an error, or a warning about a dataset, in the reply's language."""
    return in_language(detail, "reason", "code")


def worded_tree(value: Any) -> Any:
    """A JSON value with every stored sentence in it in the reply's language."""
    if isinstance(value, list):
        return [worded_tree(each) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    found = cast("dict[str, Any]", value)
    # The values of a sentence are worded with it.
    parts = {name: each if name == "params" else worded_tree(each) for name, each in found.items()}
    return in_language(parts, "message", "message_code") if "message_code" in found else parts


def worded_warning(warning: Mapping[str, Any]) -> dict[str, Any]:
    """A warning of a run in the reply's language."""
    return in_language(warning, "message", "message_code")
