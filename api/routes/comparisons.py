"""Comparisons: what the trained model answers next to its reference."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from fastapi.concurrency import run_in_threadpool

from api.dependencies import Id, Service, Wake
from api.errors import error_response, responses
from api.schemas import Comparison
from jobs.service import ComparisonRequest
from jobs.states import ComparisonState

router = APIRouter(prefix="/jobs/{job_id}", tags=["comparisons"])

_LOOK_EVERY_S = 0.5


@router.post("/compare", response_model=Comparison, responses={**responses(404, 409), 202: {"model": Comparison}})
async def compare(
    job_id: Id,
    request: Annotated[ComparisonRequest, Body()],
    service: Service,
    waker: Wake,
    wait_s: Annotated[float, Query(ge=0, description="How long to wait for the answer.")] = 60,
) -> Response:
    """Asks both models. 200 with the answers, or 202 with a `Location` to poll when they take longer than `wait_s`."""
    record = await run_in_threadpool(service.compare, job_id, request)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + min(wait_s, service.settings.max_wait_s)
    while record.state in (ComparisonState.QUEUED, ComparisonState.RUNNING) and loop.time() < deadline:
        await waker.wait(record.id, min(_LOOK_EVERY_S, max(0.0, deadline - loop.time())))
        record = await run_in_threadpool(service.comparison, job_id, record.id)
    if record.error:
        return error_response(record.error)
    is_done = record.state == ComparisonState.SUCCEEDED
    location = {} if is_done else {"Location": f"/v1/jobs/{job_id}/comparisons/{record.id}"}
    body = Comparison.of(record).model_dump_json()
    return Response(body, 200 if is_done else 202, location, "application/json")


@router.get("/comparisons/{comparison_id}", responses=responses(404))
def show(job_id: Id, comparison_id: Id, service: Service) -> Comparison:
    """A comparison and, once it is done, its answers."""
    return Comparison.of(service.comparison(job_id, comparison_id))
