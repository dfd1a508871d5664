"""Access control: checks a request's host name, origin, key, scope and rate.

ASGI middleware around everything, so that a new route is closed until it is listed here, whatever it forgets.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from fastapi.concurrency import run_in_threadpool
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import failure_response
from jobs.access import LOCAL, Access, Caller
from jobs.access import Scope as KeyScope
from jobs.errors import DatabaseError, Forbidden, RateLimited, Unauthorized
from jobs.settings import Settings
from trainer_core.errors import TafdilError
from trainer_core.wording import say

SESSION_COOKIE = "tafdil_session"
# Open without a key: the liveness check, the dashboard's files (which hold no data), and a browser's sign-in.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/", "/v1/session"})
OPEN_PREFIXES = ("/assets/",)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# How often to recheck the key of a long request.
_RECHECK_S = 2.0
_PORT = re.compile(r":\d{1,5}$")


class Gate:
    """ASGI middleware. Puts the `Caller` into the request's state, or answers 401, 403 or 429."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._rate = RateLimitItemPerMinute(settings.requests_per_minute)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._rechecked: dict[str, tuple[float, bool]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(scope, headers)
            caller = await self._caller(scope, headers)
            if caller is not None and not is_open(scope["path"]):
                self._check_scope(caller, scope)
                await self._check_rate(caller)
        except (TafdilError, DatabaseError) as error:
            await _refuse(error, scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        if caller is None or caller is LOCAL:
            await self._app(scope, receive, send)
        else:
            await self._while_valid(caller, scope, receive, send)

    async def _while_valid(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """Ends a long request, such as a stream or a download, once its key is revoked or expired."""
        access: Access = scope["app"].state.access
        sent: list[Message] = []

        async def noting(message: Message) -> None:
            sent[:] = [sent[0] if sent else message, message]
            await send(message)

        work = asyncio.ensure_future(self._app(scope, receive, noting))
        try:
            while not (await asyncio.wait([work], timeout=_RECHECK_S))[0]:
                if not await self._is_still_valid(access, caller):
                    break
            else:
                work.result()
                return
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
        if not sent:
            await _refuse(Unauthorized(say("key_ended")), scope, receive, send)
        elif "content-length" not in Headers(raw=sent[0]["headers"]) and sent[-1].get("more_body", True):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _is_still_valid(self, access: Access, caller: Caller) -> bool:
        """Asks the database once for all requests of a key. A database that is away ends no streams."""
        now = time.monotonic()
        asked_at, is_valid = self._rechecked.get(caller.key_id, (0.0, True))
        if now - asked_at < _RECHECK_S:
            return is_valid
        try:
            is_valid = await run_in_threadpool(access.is_still_valid, caller)
        except DatabaseError:
            return True
        self._rechecked = {key: value for key, value in self._rechecked.items() if now - value[0] < _RECHECK_S}
        self._rechecked[caller.key_id] = now, is_valid
        return is_valid

    def _check_host(self, headers: Headers) -> None:
        """Prevents DNS rebinding: another site can point its own name here, and its requests then carry that name."""
        host = _PORT.sub("", headers.get("host", "")).lower()
        if host not in self._hosts and "*" not in self._hosts:
            raise Forbidden(say("host_unknown", host=host[:100]))

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Accepts changes only from our own pages and from programs, never from another site's page."""
        origin = headers.get("origin")
        if scope["method"] in _SAFE_METHODS or origin is None:
            return
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            place = ""
        if place != headers.get("host", "").lower():
            raise Forbidden(say("origin_refused", origin=origin[:100]))

    async def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        """The caller; None on an open path without a valid key."""
        access: Access = scope["app"].state.access
        if not access.is_on:
            return LOCAL
        key = _key_of(headers)
        try:
            if key is None:
                raise Unauthorized(say("key_needed"))
            return await run_in_threadpool(access.authenticate, key)
        except Unauthorized:
            if is_open(scope["path"]):
                return None
            raise

    def _check_scope(self, caller: Caller, scope: Scope) -> None:
        needed = needed_scope(scope["method"], scope["path"])
        if not caller.may(needed):
            raise Forbidden(say("key_no_scope", scope=needed.value, scopes=sorted(caller.scopes)))

    async def _check_rate(self, caller: Caller) -> None:
        # The storage that is not asynchronous starts a thread for each request.
        if caller is LOCAL or await self._limiter.hit(self._rate, caller.key_id):
            return
        # The window slides: a fraction of it frees one request.
        raise RateLimited(
            say("too_many_requests", most=self._rate.amount),
            retry_after_s=max(1.0, 60 / self._rate.amount),
        )


async def _refuse(error: TafdilError | DatabaseError, scope: Scope, receive: Receive, send: Send) -> None:
    response = failure_response(error)
    # What may still be on its way is not read, so the connection cannot be used again.
    response.headers["connection"] = "close"
    await response(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def needed_scope(method: str, path: str) -> KeyScope:
    """The scope that a request needs."""
    if path == "/metrics":
        return KeyScope.METRICS
    if path == "/v1/keys" or path.startswith("/v1/keys/"):
        return KeyScope.ADMIN
    return KeyScope.READ if method in _SAFE_METHODS else KeyScope.WRITE


def _key_of(headers: Mapping[str, str]) -> str | None:
    """The key of a program (header) or a browser (cookie)."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(SESSION_COOKIE)
    except CookieError:
        return None
    return cookie.value if cookie and cookie.value else None
