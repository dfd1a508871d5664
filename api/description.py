"""The OpenAPI document: the routes' own descriptions, and the answers that middleware may give instead."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from fastapi import FastAPI

from api.errors import ERROR_FIELDS_SCHEMA, ERROR_SCHEMA, responses
from api.gate import SESSION_COOKIE, is_open, needed_scope

_SECURITY: dict[str, Any] = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key, if the service has keys turned on."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "The same, for a browser that signed in with `POST /v1/session`.",
    },
}
_LANGUAGE: dict[str, Any] = {
    "name": "Accept-Language",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "`ar`: the sentences of errors, warnings and events in Arabic; otherwise in English. `Content-Language` "
    "names the language. Codes and values stay the same.",
}


def install(app: FastAPI) -> None:
    """Completes FastAPI's document."""
    plain = app.openapi

    @cache
    def described() -> dict[str, Any]:
        return _complete(plain())

    app.openapi = described


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    # FastAPI's own shape of validation errors, which this API never sends.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = ERROR_SCHEMA
    schemas["ErrorFields"] = ERROR_FIELDS_SCHEMA
    document["components"]["parameters"] = {"AcceptLanguage": _LANGUAGE}
    document["components"]["securitySchemes"] = _SECURITY
    for path, method, operation in _operations(document):
        described = operation["responses"]
        described.pop("422", None)
        for status, response in responses(*_around(path, operation)).items():
            described.setdefault(str(status), response)
        operation["responses"] = dict(sorted(described.items()))
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/AcceptLanguage"})
        if not is_open(path):
            operation["security"] = [{name: []} for name in _SECURITY]
            scope = needed_scope(method.upper(), path)
            operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope.value}`.".strip()
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _around(path: str, operation: dict[str, Any]) -> set[int]:
    """The errors of a route's parameters, and those of the limits and the gate in front of it."""
    # From the checks of the host name and the origin.
    statuses = {403}
    if not is_open(path):
        statuses |= {401, 429, 500, 503}
    if "requestBody" in operation:
        statuses |= {408, 413}
    if "requestBody" in operation or operation.get("parameters"):
        statuses.add(422)
    return statuses
