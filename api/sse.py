"""Server-sent events, replayed from SQL. Redis pub/sub only wakes a stream early; without it the stream looks by itself."""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress

from fastapi.concurrency import run_in_threadpool
from redis.asyncio import Redis
from redis.exceptions import RedisError

from jobs.queue import events_channel
from jobs.repository import events
from jobs.service import JobService
from jobs.settings import Settings
from jobs.states import JobState

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0
_PING_EVERY_S = 15.0
_RETRY_S = 2.0


class Waker:
    """Wakes coroutines that wait for news of a job or comparison. One subscription a process."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url.get_secret_value()
        self._channel = events_channel(settings)
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def wait(self, subject_id: str, seconds: float) -> None:
        """Returns on news of the subject, and after `seconds` at the latest."""
        event = asyncio.Event()
        self._waiting[subject_id].add(event)
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._waiting[subject_id].discard(event)
            if not self._waiting[subject_id]:
                del self._waiting[subject_id]

    async def _listen(self) -> None:
        while True:
            try:
                client: Redis = Redis.from_url(self._url, socket_connect_timeout=5, health_check_interval=20)
                async with client, client.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    async for message in subscription.listen():
                        if message["type"] == "message":
                            for event in self._waiting.get(message["data"].decode(), ()):
                                event.set()
            except (RedisError, OSError) as error:
                log.debug("no wake-ups for now: %s", error)
                await asyncio.sleep(_RETRY_S)


async def job_events(service: JobService, waker: Waker, job_id: str, after: int) -> AsyncIterator[str]:
    """The events of a job beyond `after` as SSE text, until the job is over. Keeps no session while it waits."""
    loop = asyncio.get_running_loop()
    pinged_at = loop.time()
    while True:
        state, found = await run_in_threadpool(_read, service, job_id, after)
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
        await waker.wait(job_id, _LOOK_EVERY_S)


def _read(service: JobService, job_id: str, after: int) -> tuple[str, list[tuple[int, str]]]:
    # The state is read before the events: a final state then means that the last event is among those found.
    state = service.job(job_id).state
    with service.database.transaction() as session:
        found = events.after(session, job_id, after)
        return state, [(event.sequence, _format(event.sequence, event.type, event.data)) for event in found]


def _format(sequence: int, kind: str, data: object) -> str:
    return f"id: {sequence}\nevent: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
