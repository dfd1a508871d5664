"""Files that jobs leave behind: listed and downloaded by id, merged, deleted."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool

from api.dependencies import Artifacts, Id, Wake, hold_wait
from api.errors import responses
from api.files import file_response
from api.schemas import Artifact, ArtifactList, Removal, Task
from api.waiting import WaitS, answered, reply, waits_for
from jobs.artifact_service import PushRequest
from jobs.artifacts import ArtifactKind

router = APIRouter(tags=["artifacts"])

# Large or reproducible files. Logs, metrics and the manifest are deleted only if named.
_LARGE = (ArtifactKind.CHECKPOINT, ArtifactKind.MERGED)


@router.get("/jobs/{job_id}/artifacts", responses=responses(404))
def list_artifacts(
    job_id: Id,
    artifacts: Artifacts,
    kind: Annotated[tuple[ArtifactKind, ...], Query(description="Only these kinds.")] = (),
) -> ArtifactList:
    """Every file that the job has left behind so far: its model, checkpoints, logs, metrics and manifest, with hashes."""
    found = artifacts.of_job(job_id)
    return ArtifactList(job_id=job_id, artifacts=[Artifact.of(file) for file in found if not kind or file.kind in kind])


@router.get(
    "/jobs/{job_id}/artifacts/{artifact_id}",
    response_class=Response,
    responses={
        **responses(404, 416),
        200: {"content": {"application/octet-stream": {}}, "description": "The file"},
        206: {"content": {"application/octet-stream": {}}, "description": "The requested range"},
        304: {"description": "The client's copy is current"},
    },
)
def download(
    job_id: Id,
    artifact_id: Id,
    artifacts: Artifacts,
    *,
    wanted: Annotated[str | None, Header(alias="range", description="`bytes=1000-`, to resume a download.")] = None,
    if_range: Annotated[str | None, Header(description="The `ETag` of the download to resume.")] = None,
    if_none_match: Annotated[str | None, Header(description="The `ETag` of the client's copy.")] = None,
) -> Response:
    """The bytes of a file. `ETag` is its SHA-256, as in the list, and `Repr-Digest` the same in base64."""
    record, file, size = artifacts.file(job_id, artifact_id)
    headers = {"range": wanted, "if-range": if_range, "if-none-match": if_none_match}
    return file_response(file, size, record.name.rpartition("/")[2], record.sha256, headers)


@router.delete("/jobs/{job_id}/artifacts", responses=responses(404, 409))
def remove_artifacts(
    job_id: Id,
    artifacts: Artifacts,
    kind: Annotated[tuple[ArtifactKind, ...], Query(description="Default: checkpoints and merged weights.")] = (),
) -> Removal:
    """Deletes files of a finished job, and returns which. The job, its metrics and events stay."""
    return Removal.of(artifacts.remove(job_id, kind or _LARGE), job_id)


@router.delete("/jobs/{job_id}", responses=responses(404, 409))
def remove_job(job_id: Id, artifacts: Artifacts) -> Removal:
    """Permanently deletes a finished job with its files, metrics, events and comparisons."""
    return Removal.of(artifacts.remove_job(job_id), job_id)


@router.post(
    "/jobs/{job_id}/merge",
    dependencies=[Depends(hold_wait(0))],
    response_model=Task,
    responses={**responses(404, 408, 409, 422), 202: {"model": Task}},
)
async def merge(job_id: Id, artifacts: Artifacts, waker: Wake, wait_s: WaitS = 0) -> Response:
    """Merges base and adapter into full weights, as files of the kind `merged`. 202 with a `Location` to poll."""
    record = await run_in_threadpool(artifacts.merge, job_id)
    record = await answered(artifacts, waker, record, wait_s)
    waiting_for = await waits_for(record, lambda: artifacts.waiting_for)
    return reply(record, Task.of(record, waiting_for=waiting_for), f"/v1/tasks/{record.id}")


@router.post(
    "/jobs/{job_id}/push",
    dependencies=[Depends(hold_wait(0))],
    response_model=Task,
    responses={**responses(403, 404, 409), 202: {"model": Task}},
)
async def push(job_id: Id, request: PushRequest, artifacts: Artifacts, waker: Wake, wait_s: WaitS = 0) -> Response:
    """Pushes the model to the Hugging Face hub, if the service has a token for it. 202 with a `Location` to poll."""
    record = await run_in_threadpool(artifacts.push, job_id, request)
    record = await answered(artifacts, waker, record, wait_s)
    waiting_for = await waits_for(record, lambda: artifacts.waiting_for)
    return reply(record, Task.of(record, waiting_for=waiting_for), f"/v1/tasks/{record.id}")
