"""Checks before a run: what it would do, and what its rows look like to the model."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool

from api.dataset_schemas import DatasetReport
from api.dependencies import Datasets, Id, Service, Wake, hold_wait
from api.errors import responses
from api.routes.jobs import EXAMPLES
from api.schemas import DryRun, Preview, Task
from api.waiting import WaitS, answered, reply, waits_for
from jobs.dataset_service import PreviewRequest
from jobs.records import TaskRecord
from jobs.service import JobService
from jobs.spec import MODEL_PATTERN, JobSpec
from jobs.states import TaskKind, TaskState

router = APIRouter(tags=["dry runs"])


@router.post(
    "/jobs/validate",
    dependencies=[Depends(hold_wait(60))],
    response_model=DryRun,
    responses={**responses(404, 413), 202: {"model": DryRun}},
)
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
    waiting_for = await waits_for(record, lambda: service.waiting_for)
    return reply(record, DryRun.of(record, waiting_for=waiting_for), f"/v1/tasks/{record.id}")


@router.post(
    "/datasets/{dataset_id}/preview",
    dependencies=[Depends(hold_wait(60))],
    response_model=Preview,
    responses={**responses(404), 202: {"model": Preview}},
)
async def preview(
    dataset_id: Id, request: Annotated[PreviewRequest, Body()], datasets: Datasets, waker: Wake, wait_s: WaitS = 60
) -> Response:
    """Training rows as a model would see them: each token with its id, its text, and whether it counts towards the loss."""
    record = await run_in_threadpool(datasets.preview, dataset_id, request)
    record = await answered(datasets, waker, record, wait_s)
    waiting_for = await waits_for(record, lambda: datasets.waiting_for)
    return reply(record, Preview.of(record, waiting_for=waiting_for), f"/v1/tasks/{record.id}")


@router.get(
    "/datasets/{dataset_id}/report",
    dependencies=[Depends(hold_wait(60))],
    response_model=DatasetReport,
    responses={**responses(404, 422), 202: {"model": DatasetReport}},
)
async def report(
    dataset_id: Id,
    datasets: Datasets,
    waker: Wake,
    model: Annotated[
        str | None, Query(max_length=200, pattern=MODEL_PATTERN, description="Also count this model's tokens.")
    ] = None,
    wait_s: WaitS = 60,
) -> Response:
    """What a dataset contains, and which shortcuts it offers: simple rules that find the preferred answer.

    Computed once after the upload and kept with the dataset. 202 with a `Location` to poll if it takes longer than `wait_s`.
    """
    record = await run_in_threadpool(datasets.report, dataset_id, model)
    record = await answered(datasets, waker, record, wait_s)
    waiting_for = await waits_for(record, lambda: datasets.waiting_for)
    return reply(record, DatasetReport.of(record, waiting_for=waiting_for), f"/v1/tasks/{record.id}")


@router.get("/tasks/{task_id}", responses=responses(404))
def show(task_id: Id, service: Service) -> Task:
    """A task and, once it is done, its answer."""
    return _shown(service.task(task_id), service)


@router.post("/tasks/{task_id}/cancel", status_code=202, responses=responses(404, 409))
def cancel(task_id: Id, service: Service) -> Task:
    """Cancels a comparison, a dry run, a preview, a merge or a push.

    A waiting task is cancelled immediately, a running one within seconds, once its process has ended. Requests that joined
    it are cancelled too. A client that only stops waiting does not cancel its task.
    """
    return _shown(service.cancel_task(task_id), service)


def _shown(record: TaskRecord, service: JobService) -> Task:
    if record.state != TaskState.QUEUED:
        return Task.of(record)
    is_comparison = record.kind in (TaskKind.COMPARE, TaskKind.HELD_OUT)
    return Task.of(record, waiting_for=service.comparisons_wait_for if is_comparison else service.waiting_for)
