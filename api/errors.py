"""Every error as one shape: `{"error": {code, message, hint, retryable, user_fault, details}}`, with a fitting status."""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Set
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException

from api.language import name, speaking, worded_error
from jobs.errors import DatabaseError, NotFound, RateLimited, Unauthorized
from jobs.spec import invalid
from trainer_core.disk import is_disk_full
from trainer_core.errors import CODES, TafdilError, error_dict
from trainer_core.wording import Message, say

log = logging.getLogger(__name__)

STATUS: dict[str, int] = {
    "spec_invalid": 422,
    "data_invalid": 422,
    "data_overlong": 422,
    "data_unclear": 422,
    "model_not_found": 422,
    "model_refused": 422,
    "forward_mismatch": 422,
    "cancelled": 409,
    "not_found": 404,
    "state_conflict": 409,
    "idempotency_conflict": 409,
    "unauthorized": 401,
    "forbidden": 403,
    "too_large": 413,
    "rate_limited": 429,
    "timeout": 408,
    "disk_full": 507,
    "method_not_allowed": 405,
}
_CODE_OF_STATUS = {401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "too_large", 429: "rate_limited"}


def error_response(error: dict[str, Any], status: int | None = None) -> JSONResponse:
    """A response for the stored or raised form of an error."""
    return JSONResponse({"error": worded_error(error)}, status or STATUS.get(error["code"], 500))


def failure_response(error: TafdilError | DatabaseError) -> JSONResponse:
    """A response for an error of the product, or for a database that is unavailable."""
    if isinstance(error, DatabaseError):
        if is_disk_full(error):
            return _disk_full(error)
        log.error("database error", exc_info=error)
        return error_response(error_dict("internal", say("database_unavailable")), 503)
    response = error_response(error.as_dict())
    if isinstance(error, RateLimited):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def install(app: FastAPI) -> None:
    """Registers the handlers."""

    @app.exception_handler(TafdilError)
    def _known(_: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return failure_response(cast("TafdilError", error))

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        methods = methods_of(request)
        if methods and request.method not in methods:
            # `GET /v1/jobs/validate` is not a job of that name.
            return _not_allowed(request, methods)
        found = cast("RequestValidationError", error).errors()
        for item in found:
            # A malformed id names nothing either.
            if item["loc"][0] == "path":
                return error_response(_nothing_at(request, str(item["loc"][1]), str(item["input"])).as_dict())
        return error_response(invalid(found).as_dict())

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        status = cast("HTTPException", error).status_code
        if status == 405:
            # The framework names the methods of the first route that has the path.
            return _not_allowed(request, methods_of(request) or {"GET", "HEAD"})
        if status == 400:
            # FastAPI's error for a body that is not JSON.
            return error_response(error_dict("spec_invalid", say("body_not_json")))
        code = _CODE_OF_STATUS.get(status, "spec_invalid" if status < 500 else "internal")
        is_absent = status == 404
        message = _no_path(request) if is_absent else say("http_refused", status=status)
        response = error_response(error_dict(code, message), status)
        response.headers.update(cast("HTTPException", error).headers or {})
        return response

    @app.exception_handler(DatabaseError)
    def _database(_: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return failure_response(cast("DatabaseError", error))

    @app.exception_handler(OSError)
    def _system(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return _disk_full(error) if is_disk_full(error) else _unknown(request, error)

    @app.exception_handler(Exception)
    def _unknown(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        log.exception("unexpected error", exc_info=error)
        # Sent outside all middleware.
        with speaking(request.headers.get("accept-language", "")) as chosen:
            response = error_response(error_dict("internal", say("unexpected")))
        name(response.headers, chosen)
        return response


def _nothing_at(request: Request, parameter: str, value: str) -> NotFound:
    """The error for a path that names nothing, given its parameter and the id."""
    kind, _, is_id = parameter.rpartition("_")
    return NotFound(say(f"not_found.{kind}", id=value[:100]) if is_id == "id" else _no_path(request))


def _no_path(request: Request) -> Message:
    return say("not_found.path", path=request.url.path[:200])


def _disk_full(error: Exception) -> JSONResponse:
    log.error("the disk is full", exc_info=error)
    return error_response(error_dict("disk_full", say("service_disk_full")))


def methods_of(request: Request) -> set[str]:
    """The methods that a path allows. Literal paths take precedence over parametrised ones."""
    allowed: dict[str, set[str]] = defaultdict(set)
    for route in iter_route_contexts(request.app.routes):
        # Mounted files have no methods.
        if isinstance(methods := getattr(route, "methods", None), Set):
            allowed[str(route.path)] |= methods
    path = request.url.path
    fitting = (
        [path] if path in allowed else [each for each in allowed if re.fullmatch(re.sub(r"{\w+}", "[^/]+", each), path)]
    )
    found = {method for each in fitting for method in allowed[each]}
    # `api.head` answers it wherever GET is allowed.
    return found | {"HEAD"} if "GET" in found else found


def _not_allowed(request: Request, methods: set[str]) -> JSONResponse:
    allowed = sorted(methods)
    message = say("method_not_taken", methods=allowed, method=request.method)
    response = error_response(error_dict("method_not_allowed", message))
    response.headers["Allow"] = ", ".join(allowed)
    return response


QUESTION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "With `data_unclear`: the missing option and its likely value.",
    "required": ["about", "choices", "guess", "rows"],
    "properties": {
        "about": {
            "type": "string",
            "enum": ["map", "encoding", "sheet", "threshold"],
            "description": "The upload's parameter to set.",
        },
        "choices": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The file's columns, sheets, likely encodings or score columns.",
        },
        "guess": {"description": "The likeliest value of that parameter, or null."},
        "rows": {"type": "array", "items": {"type": "object"}, "description": "The first rows, read with the guess."},
    },
}

_PARAMS: dict[str, Any] = {
    "type": "object",
    "description": "The values in the sentence, by name. A value that is itself a sentence has the form "
    '`{"code": …, "params": …}`.',
}
SENTENCE_SCHEMA: dict[str, Any] = {
    "message": {"type": "string", "description": "A sentence, in the language requested by `Accept-Language`."},
    "message_code": {"type": "string", "description": "An identifier of the sentence. Absent in those of earlier versions."},
    "params": _PARAMS,
}
DETAIL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "field": {"type": "string"},
        "reason": {"type": "string", "description": "Why, in the language requested by `Accept-Language`."},
        "line": {"type": "integer", "description": "The line or row of the (first) error, from 1."},
        "count": {"type": "integer", "description": "The number of rows with this error, if more than one."},
        "lines": {"type": "array", "items": {"type": "integer"}, "description": "The first of these rows."},
        "code": {"type": "string", "description": "An identifier of the reason, for programs."},
        "params": _PARAMS,
    },
}
ERROR_FIELDS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["code", "message", "hint", "retryable", "user_fault", "details"],
    "properties": {
        "code": {
            "type": "string",
            "enum": sorted(CODES),
            "description": "\n".join(f"- `{code}`: {CODES[code].title}" for code in sorted(CODES)),
        },
        **SENTENCE_SCHEMA,
        "hint": {"type": "string", "description": "What to do, in the same language."},
        "retryable": {"type": "boolean"},
        "user_fault": {"type": "boolean"},
        "details": {"type": "array", "items": DETAIL_SCHEMA},
        "question": QUESTION_SCHEMA,
        "log_tail": {
            "type": "array",
            "items": {"type": "string"},
            "description": "For a failed job: the last lines of its log.",
        },
    },
}
ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"$ref": "#/components/schemas/ErrorFields"}},
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for a route's own errors. `api.description` adds those that any route can return."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
