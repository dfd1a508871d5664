"""HEAD for every GET route: the same checks, status and headers, without the body (RFC 9110, section 9.3.2)."""

from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What the router adds to a scope, for the middleware outside this one.
_ROUTING = ("route", "endpoint", "path_params")


class _HeadersSent(BaseException):
    """Raised into the application once the client has the whole reply. A route's `except Exception` does not catch it."""


class Head:
    """ASGI middleware. The application inside sees a GET, and ends as soon as it has sent the headers.

    So no event stream is started and no file is read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # A copy: the server must still know that this reply has no body. Ranges are defined only for GET.
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        inner = {**scope, "method": "GET", "headers": headers}

        async def send_headers(message: Message) -> None:
            scope.update({name: inner[name] for name in _ROUTING if name in inner})
            await send(message)
            if message["type"] != "http.response.start":
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise _HeadersSent

        with suppress(_HeadersSent):
            await self._app(inner, receive, send_headers)
