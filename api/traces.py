"""A span for each request, below the one in its `traceparent`, if any."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import route_of
from jobs import tracing


class HttpTraces:
    """ASGI middleware. Records the method, route and status of a request: no path, query, header or body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with tracing.span("HTTP", parent=Headers(scope=scope).get("traceparent"), is_server=True):
            try:
                await self._app(scope, receive, seen)
            finally:
                method, route = route_of(scope)
                if route != "other":
                    tracing.rename(f"{method if method != 'other' else 'HTTP'} {route}")
                about = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
                tracing.note(about)
                if status is not None and status >= 500:
                    tracing.fail(str(status))
