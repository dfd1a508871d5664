"""Dependencies of routes."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Path, Query, Request

from api.limits import StreamLimit
from api.sse import Waker
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
    """Counts one of the caller's event streams until its reply has ended. Raises `RateLimited`."""
    limit: StreamLimit = request.app.state.stream_limit
    with limit.held(request.state.caller.key_id):
        yield


StreamParameter = Annotated[
    bool, Query(description="Server-sent events: the answers as they are generated, then the result.")
]


async def hold_stream_if_asked(request: Request, *, stream: StreamParameter = False) -> AsyncGenerator[None]:
    """The same, for a route that streams on request."""
    if not stream:
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
