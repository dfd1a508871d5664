"""Checks before a run: what it would do, and what its rows look like to the model."""

from typing import Annotated

from fastapi import APIRouter, Body, Response
from fastapi.concurrency import run_in_threadpool

from api.dependencies import Datasets, Id, Service, Wake
from api.errors import responses
from api.routes.jobs import EXAMPLES
from api.schemas import DryRun, Preview, Task
from api.waiting import WaitS, answered, reply
from jobs.dataset_service import PreviewRequest
from jobs.spec import JobSpec

router = APIRouter(tags=["dry runs"])


@router.post("/jobs/validate", response_model=DryRun, responses={**responses(404, 413), 202: {"model": DryRun}})
async def validate(
    spec: Annotated[JobSpec, Body(openapi_examples=EXAMPLES)],  # pyright: ignore[reportArgumentType]
    service: Service,
    waker: Wake,
    wait_s: WaitS = 60,
) -> Response:
    """A dry run: nothing is queued for training. Returns the spec with every default, a report of rows and tokens, the plan,
    memory and time estimates with their bands, and rendered samples.

    A spec that would be refused as a job is refused here in the same way. 202 with a `Location` to poll if the report
    takes longer than `wait_s`.
    """
    record = await run_in_threadpool(service.validate, spec, spec.model_dump(mode="json", exclude_unset=True))
    record = await answered(service, waker, record, wait_s)
    return reply(record, DryRun.of(record, waiting_for=service.waiting_for), f"/v1/tasks/{record.id}")


@router.post("/datasets/{dataset_id}/preview", response_model=Preview, responses={**responses(404), 202: {"model": Preview}})
async def preview(
    dataset_id: Id, request: Annotated[PreviewRequest, Body()], datasets: Datasets, waker: Wake, wait_s: WaitS = 60
) -> Response:
    """Training rows as a model would see them: each token with its id, its text, and whether it counts towards the loss."""
    record = await run_in_threadpool(datasets.preview, dataset_id, request)
    record = await answered(datasets, waker, record, wait_s)
    return reply(record, Preview.of(record, waiting_for=datasets.waiting_for), f"/v1/tasks/{record.id}")


@router.get("/tasks/{task_id}", responses=responses(404))
def show(task_id: Id, service: Service) -> Task:
    """A task and, once it is done, its answer."""
    return Task.of(service.task(task_id), waiting_for=service.waiting_for)
