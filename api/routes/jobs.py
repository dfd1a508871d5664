"""Jobs: submit, list, watch; pause, resume, cancel, run again."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import Field, StringConstraints

from api.dependencies import MOST, Id, Service, Wake, hold_stream
from api.errors import responses
from api.schemas import Attempt, AttemptList, CancelOptions, Job, JobPage, Metrics, RerunOptions, ResumeOptions
from api.sse import event_stream, job_events
from jobs.curves import as_csv
from jobs.records import JobRecord
from jobs.service import JobService
from jobs.spec import EVENT_TYPE, ID, IDEMPOTENCY_KEY, JobSpec, example
from jobs.states import JobState
from trainer_core.config import SETTINGS, Method

router = APIRouter(prefix="/jobs", tags=["jobs"])

EXAMPLES = {each.method_name: {"summary": f"{each.title} on the sample data", "value": example(each)} for each in SETTINGS}
# More than any spec has; their values are checked as those of a spec.
_MOST_FIELDS = 200
EventType = Annotated[str, StringConstraints(pattern=EVENT_TYPE)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=IDEMPOTENCY_KEY,
        description="Chosen by the client, unique to this request. Sending the request again with it creates no second job.",
    ),
]


@router.post("", status_code=202, responses=responses(404, 409, 413))
def submit(
    spec: Annotated[JobSpec, Body(openapi_examples=EXAMPLES)],  # pyright: ignore[reportArgumentType]
    service: Service,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Queues a job. The reply is sent after the job is stored; `Location` is the job's URL."""
    job = service.submit(spec, spec.model_dump(mode="json", exclude_unset=True), idempotency_key)
    return _shown(service, response, job)


def _shown(service: JobService, response: Response, job: JobRecord) -> Job:
    """A job that was just stored or changed, with its `Location`."""
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return Job.of(job, service.queue_places([job]).get(job.id))


@router.get("", responses=responses(404))
def list_jobs(
    service: Service,
    state: JobState | None = None,
    method: Method | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=ID, description="`next_cursor` of a page.")] = None,
) -> JobPage:
    """Jobs, newest first."""
    jobs = service.jobs(limit + 1, cursor, state, method)
    shown = jobs[:limit]
    places = service.queue_places(shown)
    return JobPage(
        jobs=[Job.of(job, places.get(job.id)) for job in shown],
        next_cursor=shown[-1].id if len(jobs) > limit else None,
    )


@router.get("/{job_id}", responses=responses(404))
def show(job_id: Id, service: Service) -> Job:
    """A job and its state."""
    job = service.job(job_id)
    return Job.of(job, service.queue_places([job]).get(job.id))


@router.post("/{job_id}/cancel", status_code=202, responses=responses(404, 409))
def cancel(job_id: Id, service: Service, options: CancelOptions | None = None) -> Job:
    """Cancels a job: immediately if no worker holds it, otherwise within seconds, once its process has ended.

    With `save_checkpoint`, a running job first saves at its next step boundary. A second request without it does not wait.
    """
    return Job.of(service.cancel(job_id, options is not None and options.save_checkpoint))


@router.post("/{job_id}/pause", status_code=202, responses=responses(404, 409))
def pause(job_id: Id, service: Service) -> Job:
    """Pauses a job: a queued one immediately; a running one saves a checkpoint at its next step and frees its device."""
    return Job.of(service.pause(job_id))


@router.post("/{job_id}/resume", status_code=202, responses=responses(404, 409))
def resume(job_id: Id, service: Service, response: Response, options: ResumeOptions | None = None) -> Job:
    """Requeues a paused job at its old place. It resumes from its checkpoint, exactly as if it had never stopped.

    A job that has run for its `max_hours` needs a higher limit.
    """
    return _shown(service, response, service.resume(job_id, options.max_hours if options else None))


@router.post("/{job_id}/rerun", status_code=202, responses=responses(404, 409))
def rerun(
    job_id: Id,
    service: Service,
    response: Response,
    options: RerunOptions | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Queues a new job with the spec of a finished one, which stays unchanged; `rerun_of` names it."""
    return _shown(service, response, service.rerun(job_id, options is not None and options.from_checkpoint, idempotency_key))


@router.post("/{job_id}/clone", status_code=202, responses=responses(404, 409))
def clone(
    job_id: Id,
    service: Service,
    response: Response,
    overrides: Annotated[
        Annotated[dict[str, Any], Field(max_length=_MOST_FIELDS)] | None,
        Body(openapi_examples={"rate": {"summary": "Another learning rate", "value": {"learning_rate": 0.0005}}}),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Queues a new job with another job's original spec, overridden by the fields of the body.

    The other job may be in any state and stays unchanged; `rerun_of` names it.
    """
    return _shown(service, response, service.clone(job_id, overrides or {}, idempotency_key))


@router.get("/{job_id}/attempts", responses=responses(404))
def attempts(job_id: Id, service: Service) -> AttemptList:
    """Every attempt of the job: its worker and device, start and end, why it ended, its first and last step."""
    return AttemptList(job_id=job_id, attempts=[Attempt.of(record) for record in service.attempts(job_id)])


@router.get(
    "/{job_id}/metrics",
    response_model=Metrics,
    responses={**responses(404), 200: {"content": {"text/csv": {}}, "description": "Series as JSON or CSV"}},
)
def metrics(
    job_id: Id,
    service: Service,
    *,
    name: Annotated[tuple[str, ...], Query(description="Only these metrics.")] = (),
    only_current: Annotated[bool, Query(description="Leave out steps that a later attempt repeated.")] = False,
    max_points: Annotated[
        int | None,
        Query(
            ge=4,
            le=100_000,
            description="Maximum points per curve: its ends, and the lowest and highest points between them.",
        ),
    ] = None,
    first_step: Annotated[int | None, Query(ge=0, le=MOST, description="Leave out earlier steps.")] = None,
    last_step: Annotated[int | None, Query(ge=0, le=MOST, description="Leave out later steps.")] = None,
    form: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
) -> Metrics | Response:
    """Every metric point of a job, by attempt and step. CSV has the columns name, attempt, step, value."""
    points = service.metrics(
        job_id, name or None, only_current=only_current, max_points=max_points, first_step=first_step, last_step=last_step
    )
    if form == "json":
        return Metrics.of(job_id, points)
    return Response(as_csv(points), media_type="text/csv; charset=utf-8")


@router.get("/{job_id}/metadata", responses=responses(404))
def metadata(job_id: Id, service: Service) -> dict[str, object]:
    """The trained model's metadata file, with the resolved spec, hashes and versions; `complete` says if it is final."""
    return service.metadata(job_id)


@router.get(
    "/{job_id}/logs",
    response_class=StreamingResponse,
    responses={**responses(404), 200: {"content": {"text/plain": {}}, "description": "The log"}},
)
def logs(
    job_id: Id,
    service: Service,
    attempt: Annotated[int | None, Query(ge=1, le=MOST, description="One attempt; default all.")] = None,
    last_bytes: Annotated[
        int | None,
        Query(ge=1, le=2**40, description="Only this many bytes from the end of each attempt, starting at a whole line."),
    ] = None,
) -> StreamingResponse:
    """The logs of the training processes, attempt by attempt, also after they have ended."""
    attempts = service.logs(job_id, attempt)

    def read() -> Iterator[bytes]:
        for number in attempts:
            if len(attempts) > 1:
                yield f"--- attempt {number} ---\n".encode()
            with service.log(job_id, number, last_bytes) as file:
                while data := file.read(2**16):
                    yield data

    headers = {"X-Content-Type-Options": "nosniff"}
    return StreamingResponse(read(), media_type="text/plain; charset=utf-8", headers=headers)


@router.get(
    "/{job_id}/events",
    dependencies=[Depends(hold_stream)],
    response_class=StreamingResponse,
    responses={
        **responses(404),
        200: {"content": {"text/event-stream": {}}, "description": "Events"},
        204: {"description": "The job is over and the client has seen every event"},
    },
)
async def events(
    job_id: Id,
    service: Service,
    waker: Wake,
    *,
    last_event_id: Annotated[int, Header(ge=0, le=MOST, description="The `id` of the last event seen.")] = 0,
    after: Annotated[int, Query(ge=0, le=MOST, description="The same, for clients that cannot set the header.")] = 0,
    without: Annotated[tuple[EventType, ...], Query(description="Leave these types out, e.g. `metrics`.")] = (),
) -> Response:
    """Server-sent events, from the first or after the last one seen, until the job is over.

    The data of each has a `message` that says what happened, in the language requested by `Accept-Language`, with its
    `message_code` and `params`, and `at`, when it was stored.
    """
    seen = max(last_event_id, after)
    job = await run_in_threadpool(service.job, job_id)
    if JobState(job.state).is_final and seen >= job.event_count:
        return Response(status_code=204)
    return event_stream(job_events(service, waker, job_id, seen, without))
