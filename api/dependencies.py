"""What routes are given."""

from typing import Annotated

from fastapi import Depends, Path, Request

from api.sse import Waker
from jobs.service import JobService


def get_service(request: Request) -> JobService:
    return request.app.state.service


def get_waker(request: Request) -> Waker:
    return request.app.state.waker


Service = Annotated[JobService, Depends(get_service)]
Wake = Annotated[Waker, Depends(get_waker)]
Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="An id that the service gave.")]
