"""Comparisons: what the trained model answers next to its reference."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.dependencies import Id, Service, StreamParameter, Wake, hold_stream, hold_stream_if_asked
from api.errors import responses
from api.schemas import Comparison, ComparisonPage
from api.sse import comparison_events, event_stream
from api.waiting import WaitS, answered, reply
from jobs.service import ComparisonRequest
from jobs.spec import ID

router = APIRouter(prefix="/jobs/{job_id}", tags=["comparisons"])


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "The answers; events with `stream`"},
    202: {"model": Comparison},
}


@router.post(
    "/compare",
    dependencies=[Depends(hold_stream_if_asked)],
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

    With `stream` the reply is the same as that of `/comparisons/{comparison_id}/events`.
    """
    record = await run_in_threadpool(service.compare, job_id, request)
    if stream:
        return event_stream(comparison_events(service, waker, job_id, record.id))
    record = await answered(service, waker, record, wait_s)
    return reply(
        record, Comparison.of(record, waiting_for=service.waiting_for), f"/v1/jobs/{job_id}/comparisons/{record.id}"
    )


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


@router.get("/comparisons", responses=responses(404))
def list_comparisons(
    job_id: Id,
    service: Service,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=ID, description="`next_cursor` of a page.")] = None,
) -> ComparisonPage:
    """Comparisons made with the job's model, newest first."""
    found = service.comparisons(job_id, limit + 1, cursor)
    shown = found[:limit]
    next_cursor = shown[-1].id if len(found) > limit else None
    return ComparisonPage(
        comparisons=[Comparison.of(record, waiting_for=service.waiting_for) for record in shown], next_cursor=next_cursor
    )


@router.get("/comparisons/{comparison_id}", responses=responses(404))
def show(job_id: Id, comparison_id: Id, service: Service) -> Comparison:
    """A comparison and, once it is done, its answers."""
    return Comparison.of(service.comparison(job_id, comparison_id), waiting_for=service.waiting_for)
