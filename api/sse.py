"""Server-sent events, replayed from SQL. Redis pub/sub only wakes a stream early; without it the stream polls."""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from api.event_words import shown
from api.held_out_schemas import HeldOut
from api.language import language, worded_error
from api.schemas import Comparison, instant
from api.task_states import TaskStates
from jobs.queue import events_channel
from jobs.records import EventRecord
from jobs.repository import events
from jobs.service import JobService
from jobs.settings import Settings
from jobs.states import JobState, TaskKind, TaskState

log = logging.getLogger(__name__)

# A stream polls rarely while wake-ups arrive, and often while they do not.
_LOOK_EVERY_S = 10.0
_LOOK_EVERY_UNHEARD_S = 2.0
_LOOK_EVERY_GROWING_S = 0.5
_PING_EVERY_S = 15.0
_RETRY_S = 2.0
_PONG_S = 3.0
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


class Waker:
    """Wakes coroutines waiting for news of a job or comparison, and lets them share reads. One subscription per process."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url.get_secret_value()
        self._channel = events_channel(settings)
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._reads: dict[tuple[object, ...], asyncio.Task[Any]] = {}
        self.is_listening = False
        self.tasks = TaskStates()

    def start(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def shared(self, key: tuple[object, ...], read: Callable[[], Any]) -> Any:
        """Calls `read` in a thread and returns its result. Concurrent streams with the same key share one call."""
        task = self._reads.get(key)
        if task is None:
            task = asyncio.create_task(run_in_threadpool(read))
            self._reads[key] = task
            task.add_done_callback(lambda done: self._end_read(key, done))
        # A cancelled stream must not cancel the others' read.
        return await asyncio.shield(task)

    def _end_read(self, key: tuple[object, ...], done: asyncio.Task[Any]) -> None:
        del self._reads[key]
        if not done.cancelled():
            # If every stream has left meanwhile, nobody else looks at the error, and asyncio would log it.
            done.exception()

    async def wait(self, subject_id: str, seconds: float) -> bool:
        """Returns True on news of the subject, and False after `seconds` without any."""
        event = asyncio.Event()
        self._waiting[subject_id].add(event)
        try:
            # Python 3.11's `wait_for` loses a cancellation that arrives together with the news.
            async with asyncio.timeout(seconds):
                return await event.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting[subject_id].discard(event)
            if not self._waiting[subject_id]:
                del self._waiting[subject_id]

    async def _listen(self) -> None:
        while True:
            try:
                client: Redis = Redis.from_url(self._url, socket_connect_timeout=5)
                async with client, client.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    while True:
                        await self._hear(subscription)
            except Exception as error:
                # Anyone who can reach the broker can send anything; reopen the channel whatever broke it.
                # Once for each time that the broker goes away.
                level = logging.WARNING if self.is_listening else logging.DEBUG
                self.is_listening = False
                log.log(level, "no wake-ups for now: %s: %s", type(error).__name__, error)
                await asyncio.sleep(_RETRY_S)

    async def _hear(self, subscription: PubSub) -> None:
        """Receives the next message. Raises `TimeoutError` if the broker stays silent, even after a ping."""
        message = await subscription.get_message(timeout=_PING_EVERY_S)
        if message is None:
            await subscription.ping()
            message = await subscription.get_message(timeout=_PONG_S)
            if message is None:
                raise TimeoutError("the broker does not answer")
        self.is_listening = True
        data = message["data"]
        if message["type"] == "message" and isinstance(data, bytes):
            # Our ids are ASCII; anything else matches no waiter.
            for event in self._waiting.get(data.decode("ascii", "replace"), ()):
                event.set()


async def job_events(
    service: JobService, waker: Waker, job_id: str, after: int, without: tuple[str, ...] = ()
) -> AsyncIterator[str]:
    """A job's events after `after` as SSE text, until the job is over. Holds no session while it waits.

    Each event's data has a `message` in the reply's language, with its code and values, and `at`, when it was stored.
    """
    loop = asyncio.get_running_loop()
    pinged_at = loop.time()
    while True:
        state, found = await waker.shared(
            (job_id, after, without, language()), lambda after=after: _read(service, job_id, after, without)
        )
        for sequence, text in found:
            after = sequence
            yield text
        if found:
            continue
        if JobState(state).is_final:
            return
        if loop.time() - pinged_at >= _PING_EVERY_S:
            pinged_at = loop.time()
            yield ": ping\n\n"
        await waker.wait(job_id, _LOOK_EVERY_S if waker.is_listening else _LOOK_EVERY_UNHEARD_S)


async def comparison_events(
    service: JobService, waker: Waker, job_id: str, comparison_id: str, kind: TaskKind = TaskKind.COMPARE
) -> AsyncIterator[str]:
    """A comparison's texts as they are generated, then its result or error, as SSE text."""
    shown = Comparison if kind is TaskKind.COMPARE else HeldOut
    loop = asyncio.get_running_loop()
    pinged_at = loop.time()
    told: dict[str, Any] | None = None
    while True:
        record = await run_in_threadpool(service.comparison, job_id, comparison_id, kind)
        if record.error:
            yield _format(None, "error", worded_error(record.error))
            return
        if record.state == TaskState.SUCCEEDED:
            yield _format(None, "result", shown.of(record).model_dump(mode="json"))
            return
        if record.partial and record.partial != told:
            told = record.partial
            yield _format(None, "partial", told)
        elif loop.time() - pinged_at >= _PING_EVERY_S:
            pinged_at = loop.time()
            yield ": ping\n\n"
        await waker.wait(comparison_id, _LOOK_EVERY_UNHEARD_S if waker.is_listening else _LOOK_EVERY_GROWING_S)


def event_stream(events: AsyncIterator[str], location: str | None = None) -> StreamingResponse:
    """Events as a reply that proxies neither buffer nor cache. `location` is the address of what they are about."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **({"Location": location} if location else {})}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def _read(service: JobService, job_id: str, after: int, without: tuple[str, ...]) -> tuple[str, list[tuple[int, str]]]:
    # Read the state before the events, so that a final state means that the last event is among those found.
    state = service.job(job_id).state
    with service.database.reading() as session:
        found = events.after(session, job_id, after, without=without)
        return state, [(event.sequence, _format(event.sequence, event.type, _dated(event))) for event in found]


def _dated(event: EventRecord) -> dict[str, Any]:
    at = instant(event.created_at)
    assert at is not None
    return {**shown(event.type, event.data), "at": at.isoformat()}


def _format(sequence: int | None, kind: str, data: object) -> str:
    number = "" if sequence is None else f"id: {sequence}\n"
    # Characters that many clients treat as line ends.
    text = json.dumps(data, ensure_ascii=False).translate(_LINE_ENDS)
    return f"{number}event: {kind}\ndata: {text}\n\n"
