"""Comparisons: what the trained model answers next to its reference."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.dependencies import Id, Service, StreamParameter, Wake, hold_stream, hold_wait_or_stream
from api.errors import responses
from api.held_out_schemas import HeldOut, HeldOutPage
from api.schemas import Comparison, ComparisonPage
from api.sse import comparison_events, event_stream
from api.waiting import WaitS, answered, reply, waits_for
from jobs.comparisons import ComparisonRequest, HeldOutRequest
from jobs.spec import ID
from jobs.states import TaskKind

router = APIRouter(prefix="/jobs/{job_id}", tags=["comparisons"])


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "The answers; events with `stream`"},
    202: {"model": Comparison},
}


@router.post(
    "/compare",
    dependencies=[Depends(hold_wait_or_stream)],
    response_model=Comparison,
    responses={**responses(404, 409), **_ANSWERS},
)
async def compare(
    job_id: Id,
    request: Annotated[ComparisonRequest, Body()],
    service: Service,
    waker: Wake,
    *,
    wait_s: WaitS = 60,
    stream: StreamParameter = False,
) -> Response:
    """Asks both models. 200 with the answers, or 202 with a `Location` to poll if they take longer than `wait_s`.

    With `stream` the reply is the same as that of `/comparisons/{comparison_id}/events`; `Location` names the comparison.
    """
    record = await run_in_threadpool(service.compare, job_id, request)
    location = f"/v1/jobs/{job_id}/comparisons/{record.id}"
    if stream:
        return event_stream(comparison_events(service, waker, job_id, record.id), location)
    record = await answered(service, waker, record, wait_s)
    waiting_for = await waits_for(record, lambda: service.comparisons_wait_for)
    return reply(record, Comparison.of(record, waiting_for=waiting_for), location)


@router.get(
    "/comparisons/{comparison_id}/events",
    dependencies=[Depends(hold_stream)],
    response_class=StreamingResponse,
    responses={**responses(404), 200: {"content": {"text/event-stream": {}}, "description": "Events"}},
)
async def events(job_id: Id, comparison_id: Id, service: Service, waker: Wake) -> Response:
    """Server-sent events: `partial` with both texts so far, whenever they have grown, and finally `result` or `error`."""
    await run_in_threadpool(service.comparison, job_id, comparison_id)
    return event_stream(comparison_events(service, waker, job_id, comparison_id))


@router.post(
    "/compare/held_out",
    dependencies=[Depends(hold_wait_or_stream)],
    response_model=HeldOut,
    responses={**responses(404, 409), **_ANSWERS, 202: {"model": HeldOut}},
)
async def compare_held_out(
    job_id: Id,
    service: Service,
    waker: Wake,
    request: Annotated[HeldOutRequest | None, Body()] = None,
    *,
    wait_s: WaitS = 60,
    stream: StreamParameter = False,
) -> Response:
    """Asks both models prompts that the run did not train on, and counts the answers that the trained model's implicit
    reward prefers. 200 with the counts and answers, or 202 with a `Location` to poll.

    With `stream` the reply is the same as that of `/compare/held_out/{comparison_id}/events`.
    """
    record = await run_in_threadpool(service.compare_held_out, job_id, request or HeldOutRequest.model_validate({}))
    if stream:
        return event_stream(comparison_events(service, waker, job_id, record.id, TaskKind.HELD_OUT))
    record = await answered(service, waker, record, wait_s)
    waiting_for = await waits_for(record, lambda: service.comparisons_wait_for)
    return reply(record, HeldOut.of(record, waiting_for=waiting_for), f"/v1/jobs/{job_id}/compare/held_out/{record.id}")


@router.get("/compare/held_out", responses=responses(404))
def list_held_out(
    job_id: Id,
    service: Service,
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
    cursor: Annotated[str | None, Query(pattern=ID, description="`next_cursor` of a page.")] = None,
) -> HeldOutPage:
    """Comparisons over held-out prompts, newest first. `answers` is empty here; each comparison itself has them."""
    found, waiting_for = service.comparisons(job_id, limit + 1, cursor, TaskKind.HELD_OUT), service.comparisons_wait_for
    shown = [HeldOut.of(record, waiting_for=waiting_for) for record in found[:limit]]
    for each in shown:
        if each.result:
            each.result.answers = []
    return HeldOutPage(comparisons=shown, next_cursor=shown[-1].id if len(found) > limit else None)


@router.get("/compare/held_out/{comparison_id}", responses=responses(404))
def show_held_out(job_id: Id, comparison_id: Id, service: Service) -> HeldOut:
    """A comparison over held-out prompts and, once it is done, its counts and answers."""
    record = service.comparison(job_id, comparison_id, TaskKind.HELD_OUT)
    return HeldOut.of(record, waiting_for=service.comparisons_wait_for)


@router.get(
    "/compare/held_out/{comparison_id}/events",
    dependencies=[Depends(hold_stream)],
    response_class=StreamingResponse,
    responses={**responses(404), 200: {"content": {"text/event-stream": {}}, "description": "Events"}},
)
async def held_out_events(job_id: Id, comparison_id: Id, service: Service, waker: Wake) -> Response:
    """Server-sent events: `partial` with the counts so far and the texts that are being written (`current`), and finally
    `result` or `error`."""
    await run_in_threadpool(service.comparison, job_id, comparison_id, TaskKind.HELD_OUT)
    return event_stream(comparison_events(service, waker, job_id, comparison_id, TaskKind.HELD_OUT))


@router.get("/comparisons", responses=responses(404))
def list_comparisons(
    job_id: Id,
    service: Service,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=ID, description="`next_cursor` of a page.")] = None,
) -> ComparisonPage:
    """Comparisons made with the job's model, newest first."""
    found, waiting_for = service.comparisons(job_id, limit + 1, cursor), service.comparisons_wait_for
    shown = found[:limit]
    next_cursor = shown[-1].id if len(found) > limit else None
    return ComparisonPage(
        comparisons=[Comparison.of(record, waiting_for=waiting_for) for record in shown], next_cursor=next_cursor
    )


@router.get("/comparisons/{comparison_id}", responses=responses(404))
def show(job_id: Id, comparison_id: Id, service: Service) -> Comparison:
    """A comparison and, once it is done, its answers."""
    record = service.comparison(job_id, comparison_id)
    return Comparison.of(record, waiting_for=service.comparisons_wait_for)
