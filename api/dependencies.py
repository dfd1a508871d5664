"""Dependencies of routes."""

from collections.abc import AsyncGenerator, Callable
from typing import Annotated

from fastapi import Depends, Path, Query, Request

from api.limits import StreamLimit
from api.sse import Waker
from api.waiting import WaitS
from jobs.access import Access
from jobs.artifact_service import ArtifactService
from jobs.dataset_service import DatasetService
from jobs.service import JobService
from jobs.spec import ID


def get_service(request: Request) -> JobService:
    """The service as the caller sees it. Fails unless the gate has set a caller."""
    return request.app.state.service.for_caller(request.state.caller)


def get_datasets(request: Request) -> DatasetService:
    service = get_service(request)
    return DatasetService(service.database, service.queue, service.settings, service.caller)


def get_artifacts(request: Request) -> ArtifactService:
    service = get_service(request)
    return ArtifactService(service.database, service.queue, service.settings, service.caller)


def get_access(request: Request) -> Access:
    return request.app.state.access


def get_waker(request: Request) -> Waker:
    return request.app.state.waker


Service = Annotated[JobService, Depends(get_service)]


async def hold_stream(request: Request) -> AsyncGenerator[None]:
    """Counts one of the caller's streams and waiting requests until its reply has ended. Raises `RateLimited`."""
    limit: StreamLimit = request.app.state.stream_limit
    with limit.held(request.state.caller.key_id):
        yield


StreamParameter = Annotated[
    bool, Query(description="Server-sent events: the answers as they are generated, then the result.")
]


def hold_wait(default_s: float) -> Callable[..., AsyncGenerator[None]]:
    """The same, for a route that waits for an answer, with the route's own default of `wait_s`."""

    async def hold(request: Request, *, wait_s: WaitS = default_s) -> AsyncGenerator[None]:
        if wait_s <= 0:
            yield
            return
        async for _ in hold_stream(request):
            yield

    return hold


async def hold_wait_or_stream(
    request: Request, *, wait_s: WaitS = 60, stream: StreamParameter = False
) -> AsyncGenerator[None]:
    """The same, for a route that waits for an answer or streams it."""
    if not stream and wait_s <= 0:
        yield
        return
    async for _ in hold_stream(request):
        yield


KeyAccess = Annotated[Access, Depends(get_access)]
Wake = Annotated[Waker, Depends(get_waker)]
Artifacts = Annotated[ArtifactService, Depends(get_artifacts)]
Datasets = Annotated[DatasetService, Depends(get_datasets)]
# The largest integer that every database can store.
MOST = 2**31 - 1
Id = Annotated[str, Path(pattern=ID, description="An id from the service.")]
