"""The application: `uvicorn api.app:create_app --factory`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry

from api import dashboard, description, errors
from api.gate import Gate
from api.head import Head
from api.language import Languages
from api.limits import BodyLimit, ReadLimit, StreamLimit
from api.metrics import HttpMetrics, ServiceCollector, UploadMetrics
from api.routes import artifacts, checks, comparisons, datasets, health, jobs, keys, methods
from api.sse import Waker
from api.traces import HttpTraces
from jobs import logs, tracing, uploads
from jobs.access import Access
from jobs.database import Database
from jobs.places import install_samples
from jobs.queue import CeleryQueue, JobQueue
from jobs.readiness import StorageCheck
from jobs.sender import Sender
from jobs.service import JobService
from jobs.settings import Settings, get_settings

_DESCRIPTION = """
Aligns Arabic Qwen models with preference data by KTO, IPO and CPO.

Upload rows with `POST /v1/datasets`, start a job with `POST /v1/jobs`, watch it under `/v1/jobs/{id}`, and ask
`POST /v1/jobs/{id}/compare` what the trained model answers next to its reference. Every error has one shape:
`{"error": {"code", "message", "message_code", "params", "hint", "retryable", "user_fault", "details"}}`. Its sentences,
and those of warnings and events, are in Arabic for a request with `Accept-Language: ar`.
"""


# A request must not wait longer for a database that stands still than its client waits for it. Clients retry the 503.
_DATABASE_ANSWERS_S = 5.0


def create_app(settings: Settings | None = None, queue: JobQueue | None = None) -> FastAPI:
    """The API with the given settings and queue, by default those of the environment."""
    settings = settings or get_settings()
    logs.configure()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        settings.make_directories()
        install_samples(settings)
        await run_in_threadpool(uploads.sweep, settings)
        database = Database(settings.database, answer_s=_DATABASE_ANSWERS_S)
        await run_in_threadpool(database.migrate)
        app.state.storage_check = StorageCheck(database, settings)
        sender = queue or Sender(CeleryQueue(settings), database)
        app.state.service = JobService(database, sender, settings)
        collector = ServiceCollector(database, app.state.service.queue, settings)
        app.state.registry.register(collector)
        app.state.stream_limit = StreamLimit(settings.max_streams)
        app.state.access = Access(database, settings)
        app.state.waker = Waker(settings)
        app.state.waker.start()
        try:
            yield
        finally:
            app.state.registry.unregister(collector)
            await app.state.waker.stop()
            if isinstance(sender, Sender):
                await run_in_threadpool(sender.close)
            database.dispose()
            await run_in_threadpool(tracing.close)

    # The documentation page ships with its scripts: many GPU machines cannot reach a CDN.
    app = FastAPIOffline(
        redoc_url=None,
        title="Tafdil",
        version=version("tafdil"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own spans would reveal paths, queries and validation results.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    app.add_middleware(ReadLimit, timeout_s=settings.read_timeout_s)
    app.add_middleware(Gate, settings=settings)
    # Outside the gate, so that its refusals to HEAD lack a body too; inside the metrics, which count HEAD as HEAD.
    app.add_middleware(Head)
    registry = CollectorRegistry()
    app.state.registry = registry
    app.state.upload_metrics = UploadMetrics(registry)
    app.add_middleware(HttpMetrics, registry=registry)
    app.add_middleware(Languages)
    if tracing.configure("tafdil-api"):
        app.add_middleware(HttpTraces)
    errors.install(app)
    app.include_router(health.router)
    for part in (checks, methods, jobs, comparisons, datasets, artifacts, keys):
        app.include_router(part.router, prefix="/v1")
    dashboard.install(app)
    description.install(app)
    return app
