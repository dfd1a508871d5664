"""What routes are given."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.responses import StreamingResponse

from api.limits import StreamLimit
from api.sse import Waker, event_stream
from jobs.access import Access
from jobs.artifact_service import ArtifactService
from jobs.dataset_service import DatasetService
from jobs.service import JobService
from jobs.spec import ID


def get_service(request: Request) -> JobService:
    """The service as the caller sees it. Without a caller, which the gate names, this fails."""
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


def get_streams(request: Request) -> "Streams":
    return Streams(request.app.state.stream_limit, request.state.caller.key_id)


@dataclass(frozen=True)
class Streams:
    """Opens event streams on the caller's account."""

    limit: StreamLimit
    key_id: str

    def check(self) -> None:
        """Raises `RateLimited` when the caller may not have one more: before anything is done for it."""
        self.limit.check(self.key_id)

    def reply(self, events: AsyncIterator[str]) -> StreamingResponse:
        """A reply of events, if the caller may have one more. Raises `RateLimited`."""
        return event_stream(self.limit.opened(self.key_id, events))


OpenStreams = Annotated[Streams, Depends(get_streams)]
KeyAccess = Annotated[Access, Depends(get_access)]
Wake = Annotated[Waker, Depends(get_waker)]
Artifacts = Annotated[ArtifactService, Depends(get_artifacts)]
Datasets = Annotated[DatasetService, Depends(get_datasets)]
# The largest integer that every database keeps.
MOST = 2**31 - 1
Id = Annotated[str, Path(pattern=ID, description="An id that the service gave.")]
