"""The limit on request bodies, kept while the body arrives and not by what its length header claims."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from trainer_core.errors import error_dict

UPLOAD_PATH = "/v1/datasets"


class BodyLimit:
    """ASGI middleware. Bodies are small JSON, so each is read whole, up to the limit, before the route sees it.

    Uploads pass: their route streams, with a limit of its own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "POST" and scope["path"].rstrip("/") == UPLOAD_PATH):
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        size = 0
        while not messages or messages[-1].get("more_body", False):
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            if size > self._max_bytes:
                error = error_dict("too_large", f"the body is larger than {self._max_bytes:,} bytes")
                response = error_response(error)
                # What is still on its way is not read, so the connection cannot be used again.
                response.headers["connection"] = "close"
                await response(scope, receive, send)
                return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)
