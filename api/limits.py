"""Limits on how much a client sends, and how slowly it sends and reads, enforced on the bytes, not on its headers."""

import asyncio
import logging
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from jobs.errors import ClientTooSlow, RateLimited
from trainer_core.errors import error_dict
from trainer_core.wording import say

UPLOAD_PATHS = frozenset({"/v1/datasets", "/v1/datasets/check"})

log = logging.getLogger(__name__)


class BodyLimit:
    """ASGI middleware. Bodies are small JSON, so each is read completely, up to the limits, before the route sees it.

    Uploads pass while they make progress: their route streams them, with its own limit on their size.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"].rstrip("/") in UPLOAD_PATHS:
            await self._stream(scope, receive, send)
        else:
            await self._whole(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Disconnects a client that sends nothing for too long, or whose request is answered before its body ends."""
        is_complete = False

        async def receive_in_time() -> Message:
            nonlocal is_complete
            try:
                # Python 3.11's `wait_for` loses a cancellation that arrives together with the message.
                async with asyncio.timeout(self._timeout_s):
                    message = await receive()
            except TimeoutError as error:
                raise ClientTooSlow(say("upload_stalled", seconds=self._timeout_s)) from error
            is_complete = not message.get("more_body", False)
            return message

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and not is_complete:
                # Otherwise the rest would be read, whatever its length, and thrown away.
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive_in_time, send_last)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = []
        size = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while not messages or messages[-1].get("more_body", False):
                    messages.append(await receive())
                    size += len(messages[-1].get("body", b""))
                    if size > self._max_bytes:
                        await self._refuse(scope, receive, send, "too_large", say("body_too_large", most=self._max_bytes))
                        return
        except TimeoutError:
            await self._refuse(scope, receive, send, "timeout", say("body_too_slow", seconds=self._timeout_s))
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, code: str, why: str) -> None:
        response = error_response(error_dict(code, why))
        # The rest of the body is not read, so the connection cannot be reused.
        response.headers["connection"] = "close"
        await response(scope, receive, send)


class StreamLimit:
    """Counts what each key holds open in this process, event streams and waiting requests, to the end of the reply."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def held(self, key_id: str) -> Generator[None]:
        """Counts one of them. Raises `RateLimited` if the key has reached its limit."""
        if self._open[key_id] >= self._most:
            raise RateLimited(say("too_many_streams", most=self._most), retry_after_s=5)
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1


class ReadLimit:
    """ASGI middleware. Disconnects a client that stops reading its reply."""

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app, self._timeout_s = app, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await send(message)
            except TimeoutError as error:
                # Treated like a client that is gone, which streams handle.
                raise OSError("the client does not read") from error

        try:
            await self._app(scope, receive, send_in_time)
        except ClientDisconnect:
            log.info("%s: the client left, or did not read for %g s", scope["path"], self._timeout_s)
