"""Waits for a task's answer, without holding a thread or a session meanwhile."""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import Query, Response
from fastapi.concurrency import run_in_threadpool

from api.errors import error_response
from api.held_out_schemas import HeldOut
from api.schemas import Comparison, Task
from api.sse import Waker
from jobs.records import TaskRecord
from jobs.states import TaskState
from jobs.tenancy import TenantService, WaitingFor

# Like streams, a long poll checks rarely while wake-ups arrive.
_LOOK_EVERY_S = 5.0
_LOOK_EVERY_UNHEARD_S = 0.5

WaitS = Annotated[float, Query(ge=0, description="How long to wait for the answer, in seconds.")]


async def answered(service: TenantService, waker: Waker, record: TaskRecord, wait_s: float) -> TaskRecord:
    """The task once it is done, or its state after `wait_s` seconds (at most `TAFDIL_MAX_WAIT_S`).

    Requests that wait share their queries, and each counts as one of its key's streams (`api.dependencies.hold_wait`).
    """
    if wait_s <= 0:
        return record
    loop = asyncio.get_running_loop()
    deadline = loop.time() + min(wait_s, service.settings.max_wait_s)
    state: TaskState | None = TaskState(record.state)
    with waker.tasks.watched(record.id):
        while state in (TaskState.QUEUED, TaskState.RUNNING) and loop.time() < deadline:
            look_every_s = _LOOK_EVERY_S if waker.is_listening else _LOOK_EVERY_UNHEARD_S
            has_news = await waker.wait(record.id, min(look_every_s, max(0.0, deadline - loop.time())))
            state = await waker.tasks.of(service.database, record.id, 0.0 if has_news else look_every_s)
    return await run_in_threadpool(service.task, record.id)


async def waits_for(record: TaskRecord, look: Callable[[], WaitingFor]) -> WaitingFor | None:
    """What a queued task waits for. Looks in another thread: a broker that stands still must hold up nobody else."""
    return await run_in_threadpool(look) if record.state == TaskState.QUEUED else None


def reply(record: TaskRecord, shown: Task | Comparison | HeldOut, location: str) -> Response:
    """200 with the answer, the task's error, or 202 with a `Location` to poll."""
    if record.error:
        return error_response(record.error)
    is_done = record.state == TaskState.SUCCEEDED
    return Response(
        shown.model_dump_json(), 200 if is_done else 202, {} if is_done else {"Location": location}, "application/json"
    )
