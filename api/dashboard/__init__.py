"""The dashboard: pages for people, rendered in the browser from this package's files. It has no data of its own."""

import hashlib
import json
import mimetypes
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer_core.wording import Language, catalogue

_STATIC = Path(__file__).parent / "static"
# Everything comes from this service and scripts cannot be injected: text that slips through cannot run.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Revalidated on every load, and answered with 304: after an update no page runs with old parts.
    "Cache-Control": "no-cache",
}

# Before 3.14, Python knows this type only if the system lists it.
mimetypes.add_type("font/woff2", ".woff2")


class _Guarded:
    """ASGI. Adds the headers to every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, guarded)


def install(app: FastAPI) -> None:
    """Serves the page at `/`, its parts below `/assets/`, and each language's sentences (`/assets/wording/ar.json`)."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:  # pyright: ignore[reportUnusedFunction]
        return FileResponse(_STATIC / "index.html", headers=_HEADERS)

    @app.get("/assets/wording/{language}.json", include_in_schema=False)
    def sentences(language: Language, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body, tag = _sentences(language)
        headers = {**_HEADERS, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    app.mount("/assets", _Guarded(StaticFiles(directory=_STATIC)))


@cache
def _sentences(language: Language) -> tuple[bytes, str]:
    """Every text of a language by code as JSON, and its tag."""
    body = json.dumps(catalogue(language), ensure_ascii=False).encode()
    return body, f'"{hashlib.sha256(body).hexdigest()}"'
