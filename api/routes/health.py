"""Liveness, readiness and metrics."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from api.dependencies import Service
from jobs.errors import DatabaseError
from jobs.readiness import DatabaseState, DirectoryState, StorageCheck

router = APIRouter(tags=["health"])

_LEASES_LATE = 3


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers, whatever its threads wait for."""
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}, "description": "Metrics"}})
def metrics(request: Request) -> Response:
    """The service's state and this process's HTTP metrics, for Prometheus. Needs the `metrics` scope if keys are on."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


class Part(BaseModel):
    """A worker or a dispatcher."""

    name: str
    kind: str = Field(description="`dispatcher`, or the queue that a worker serves.")
    is_away: bool = Field(
        description="Whether it has given no sign of life for `TAFDIL_PART_LIMIT_S`: frozen, cut off or lost."
    )
    silent_s: float = Field(description="Seconds since its last sign of life.")


class Readiness(BaseModel):
    """Whether the service is ready, and the state of the parts that it needs."""

    ready: bool
    database: DatabaseState = Field(
        description="`full`: its disk is. `replaced`: its file was deleted or replaced while the service ran; restart the "
        "service."
    )
    data_directory: DirectoryState = Field(description="Whether a file can be written to the data directory.")
    broker: Literal["up", "down"]
    oldest_expired_lease_s: float
    parts: list[Part] = Field(
        description="The service's workers and dispatchers. One that is away does not make the service unready: what is "
        "sent is stored, and waits for it. One that was shut down is not listed, and one that was lost only for an hour."
    )


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready"}})
def readyz(request: Request, service: Service, response: Response) -> Readiness:
    """Whether the database and the data directory take writes, and a dispatcher requeues the jobs of dead workers.

    A broker that is down is reported but does not make the service unready: jobs are stored, and published when it is back.
    """
    check: StorageCheck = request.app.state.storage_check
    overdue_s, storage = 0.0, check.look()
    database = storage.database
    parts: list[Part] = []
    limit_s = service.settings.part_limit_s
    try:
        overdue_s = service.oldest_expired_lease_s()
        for each in check.parts():
            silent_s = round(each.silent_s, 1)
            parts.append(Part(name=each.name, kind=each.kind, is_away=each.silent_s > limit_s, silent_s=silent_s))
    except DatabaseError:
        database = "down"
    is_reaping = overdue_s < _LEASES_LATE * service.settings.lease_s
    ready = database == "up" and storage.data_directory == "writable" and is_reaping
    response.status_code = 200 if ready else 503
    return Readiness(
        ready=ready,
        database=database,
        data_directory=storage.data_directory,
        broker="up" if service.queue.is_up() else "down",
        oldest_expired_lease_s=round(overdue_s, 1),
        parts=parts,
    )
