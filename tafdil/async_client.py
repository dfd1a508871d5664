"""The async client of the HTTP API. Its sync twin is `tafdil.client.Client`, with the same methods, without `await`.

from tafdil import AsyncClient

async with AsyncClient("http://127.0.0.1:8000", key="tafdil_...") as client:
    job = await client.submit({"method": "kto", "model_name": "tafdil/tiny-arabic-qwen-2", "dataset_id": ...})
    async for state in job.watch():
        print(state.describe())
    answer = await job.compare("ما عاصمة مصر؟")
    print(answer.result["trained_model_response"])
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
from pydantic import PrivateAttr

from tafdil import calls
from tafdil.calls import Call, EventReader, Retries, authorization, raise_for, read_json, unreachable
from tafdil.downloads import Download
from tafdil.errors import ApiError, JobFailed, Unreachable, WaitTimeout, status_of
from tafdil.held_out import AsyncHeldOutCalls, AsyncHeldOutOfJob
from tafdil.models import (
    Artifact,
    Attempt,
    Comparison,
    Dataset,
    DatasetCheck,
    Event,
    JobFields,
    Key,
    Method,
    MetricPoint,
    Reading,
    Removal,
    Task,
)

Result = TypeVar("Result")
DEFAULT_URL = "http://127.0.0.1:8000"
# The service pings every 15 s, so a minute of silence means that it is gone.
STREAM_TIMEOUT_S = 60.0
_DOWNLOAD_CHUNK_BYTES = 2**20
_UPLOAD_CHUNK_BYTES = 2**16


class AsyncJob(AsyncHeldOutOfJob, JobFields):
    """A snapshot of a job, with the actions on it. It never changes; `refresh` returns a new one."""

    _client: "AsyncClient" = PrivateAttr()

    async def refresh(self) -> "AsyncJob":
        return await self._client.job(self.id)

    async def wait(self, timeout_s: float | None = None, *, check: bool = False) -> "AsyncJob":
        """As `AsyncClient.wait`."""
        return await self._client.wait(self.id, timeout_s, check=check)

    def watch(self, every_s: float = 1.0) -> AsyncGenerator["AsyncJob"]:
        """As `AsyncClient.watch`."""
        return self._client.watch(self.id, every_s)

    def events(self, after: int = 0, without: Sequence[str] = ()) -> AsyncGenerator[Event]:
        return self._client.events(self.id, after, without)

    async def metrics(self, names: Sequence[str] = (), **options: Any) -> dict[str, list[MetricPoint]]:
        return await self._client.metrics(self.id, names, **options)

    async def metadata(self) -> dict[str, Any]:
        return await self._client.metadata(self.id)

    async def logs(self, attempt: int | None = None, last_bytes: int | None = None) -> str:
        return await self._client.logs(self.id, attempt, last_bytes)

    async def attempts(self) -> list[Attempt]:
        return await self._client.attempts(self.id)

    async def compare(self, prompt: str, wait_s: float = 60.0, **options: Any) -> Comparison:
        return await self._client.compare(self.id, prompt, wait_s, **options)

    async def artifacts(self, kinds: Sequence[str] = ()) -> list[Artifact]:
        return await self._client.artifacts(self.id, kinds)

    async def download(self, folder: str | Path, kinds: Sequence[str] = ("model",)) -> list[Path]:
        return await self._client.download(self.id, folder, kinds)

    async def cancel(self, save_checkpoint: bool = False) -> "AsyncJob":
        return await self._client.cancel(self.id, save_checkpoint)

    async def pause(self) -> "AsyncJob":
        return await self._client.pause(self.id)

    async def resume(self, max_hours: float | None = None) -> "AsyncJob":
        return await self._client.resume(self.id, max_hours)

    async def rerun(self, from_checkpoint: bool = False) -> "AsyncJob":
        return await self._client.rerun(self.id, from_checkpoint)

    async def clone(self, **changes: Any) -> "AsyncJob":
        return await self._client.clone(self.id, **changes)

    async def delete(self) -> Removal:
        return await self._client.delete_job(self.id)


class AsyncClient(AsyncHeldOutCalls):
    """A client of one Tafdil service. Methods raise `ApiError` if the service refuses, `Unreachable` if it does not answer.

    Args:
        base_url: default `TAFDIL_URL`, or else port 8000 of this machine.
        timeout_s: for one answer, in addition to any time that the service is asked to wait.
        key: an API key; default `TAFDIL_API_KEY`.
        language: the language of errors, warnings and events: `ar`, or English by default.
        retries: how often to retry a request after a network failure. Only idempotent requests are retried: reads, and
            requests with an Idempotency-Key, which is added to every request that creates a job.
    """

    def __init__(
        self,
        base_url: str | None = None,
        timeout_s: float = 30.0,
        *,
        key: str | None = None,
        language: str | None = None,
        retries: int = 3,
    ) -> None:
        self.base_url = base_url or os.environ.get("TAFDIL_URL") or DEFAULT_URL
        self._http = httpx.AsyncClient(base_url=self.base_url, headers=authorization(key))
        if language:
            self._http.headers["Accept-Language"] = language
        self._timeout_s, self._retries = timeout_s, Retries(retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # -- jobs

    async def submit(self, spec: Mapping[str, Any], idempotency_key: str | None = None) -> AsyncJob:
        """Queues a job. A second call with the same key returns the first one's job."""
        return await self._job(calls.submit(spec, idempotency_key))

    async def validate(self, spec: Mapping[str, Any], wait_s: float = 60.0) -> Task:
        """A dry run. `result` is what the job would do, or None if `wait_s` was too short. Nothing is queued."""
        return await self._do(calls.validate(spec, wait_s))

    async def job(self, job_id: str) -> AsyncJob:
        return await self._job(calls.job(job_id))

    async def jobs(
        self, state: str | None = None, method: str | None = None, limit: int | None = None
    ) -> AsyncIterator[AsyncJob]:
        """Jobs, newest first: at most `limit`, or all of them, page by page."""
        cursor, given = None, 0
        while True:
            page = await self._do(calls.jobs(state, method, None if limit is None else min(200, limit - given), cursor))
            for fields in page["jobs"]:
                yield self._bound(fields)
            given, cursor = given + len(page["jobs"]), page["next_cursor"]
            if not cursor or (limit is not None and given >= limit):
                return

    async def rerun(self, job_id: str, from_checkpoint: bool = False, idempotency_key: str | None = None) -> AsyncJob:
        """A new job with the spec of a finished one."""
        return await self._job(calls.rerun(job_id, from_checkpoint, idempotency_key))

    async def clone(self, job_id: str, idempotency_key: str | None = None, **changes: Any) -> AsyncJob:
        """A new job with the spec of another one and `changes`."""
        return await self._job(calls.clone(job_id, changes, idempotency_key))

    async def cancel(self, job_id: str, save_checkpoint: bool = False) -> AsyncJob:
        return await self._job(calls.cancel(job_id, save_checkpoint))

    async def pause(self, job_id: str) -> AsyncJob:
        """Requests a pause. The job is `paused` once its checkpoint is saved and its process has ended."""
        return await self._job(calls.pause(job_id))

    async def resume(self, job_id: str, max_hours: float | None = None) -> AsyncJob:
        return await self._job(calls.resume(job_id, max_hours))

    async def attempts(self, job_id: str) -> list[Attempt]:
        """Every attempt of a job, oldest first."""
        return await self._do(calls.attempts(job_id))

    async def delete_job(self, job_id: str) -> Removal:
        """Deletes a finished job and everything that belongs to it."""
        return await self._do(calls.delete_job(job_id))

    # -- watching

    async def wait(
        self, job_id: str, timeout_s: float | None = None, every_s: float = 0.5, *, check: bool = False
    ) -> AsyncJob:
        """Waits until the job is over. Raises `WaitTimeout`, and with `check` also `JobFailed` unless it succeeded."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = await self.job(job_id)
            if job.is_over:
                if check and job.state != "succeeded":
                    raise JobFailed(job)
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"job {job_id} is still {job.state} after {timeout_s:g} s")
            await asyncio.sleep(every_s)

    async def watch(self, job_id: str, every_s: float = 1.0) -> AsyncGenerator[AsyncJob]:
        """Yields the job now, and again after every change, until it is over."""
        last: AsyncJob | None = None
        while last is None or not last.is_over:
            job = await self.job(job_id)
            if last is None or job.as_dict() != last.as_dict():
                yield job
            last = job
            if not job.is_over:
                await asyncio.sleep(every_s)

    async def events(self, job_id: str, after: int = 0, without: Sequence[str] = ()) -> AsyncGenerator[Event]:
        """Events after the number `after`, as they happen, until the job is over, except those of the types in `without`.

        A broken stream is resumed.
        """
        path, params, tried = f"/v1/jobs/{job_id}/events", {"without": list(without)}, 0
        while True:
            try:
                async for event in self._stream_events("GET", path, {"Last-Event-ID": str(after)}, params=params):
                    after, tried = event.id or after, 0
                    yield event
                return
            except Unreachable as error:
                delay = self._retries.delay_s(calls.job(job_id), tried, httpx.ReadError(str(error)))
                if delay is None:
                    raise
                tried += 1
                await asyncio.sleep(delay)

    async def metrics(
        self,
        job_id: str,
        names: Sequence[str] = (),
        *,
        only_current: bool = False,
        max_points: int | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> dict[str, list[MetricPoint]]:
        """Series by metric name; each point has attempt, step and value.

        Args:
            names: only these metrics.
            only_current: leave out steps that a later attempt repeated.
            max_points: downsample each curve to this many points, keeping its shape.
            first_step, last_step: only steps between them, inclusive.
        """
        limits = {"max_points": max_points, "first_step": first_step, "last_step": last_step}
        return await self._do(calls.metrics(job_id, names, only_current=only_current, **limits))

    async def metadata(self, job_id: str) -> dict[str, Any]:
        return await self._do(calls.metadata(job_id))

    async def logs(self, job_id: str, attempt: int | None = None, last_bytes: int | None = None) -> str:
        """What the run has printed so far; with `last_bytes`, only that much from the end of each attempt."""
        params = {"attempt": attempt, "last_bytes": last_bytes}
        return (await self._send(Call("GET", f"/v1/jobs/{job_id}/logs", str, params))).text

    # -- answers

    async def compare(self, job_id: str, prompt: str, wait_s: float = 60.0, **options: Any) -> Comparison:
        """A comparison. `options`: max_length, temperature, top_p, seed. Its `result` is None if `wait_s` was too short."""
        return await self._do(calls.compare(job_id, prompt, wait_s, options))

    def compare_events(self, job_id: str, prompt: str, **options: Any) -> AsyncGenerator[Event]:
        """Streams a comparison: events `partial` with both texts, then `result` with the comparison, or `error`."""
        body = {"prompt": prompt, **options}
        return self._stream_events("POST", f"/v1/jobs/{job_id}/compare", {}, params={"stream": True}, json=body)

    async def comparison(self, job_id: str, comparison_id: str) -> Comparison:
        return await self._do(calls.comparison(job_id, comparison_id))

    async def comparisons(self, job_id: str, limit: int = 50) -> list[Comparison]:
        """Comparisons made with a job's model, newest first."""
        return await self._do(calls.comparisons(job_id, limit))

    async def task(self, task_id: str) -> Task:
        """A dry run, merge, push, preview or report, with its result once it is done."""
        return await self._do(calls.task(task_id))

    async def cancel_task(self, task_id: str) -> Task:
        """Cancels a comparison, dry run, merge, push or preview. A running one is `cancelled` within seconds."""
        return await self._do(calls.cancel_task(task_id))

    async def wait_task(self, task_id: str, timeout_s: float | None = None, every_s: float = 1.0) -> Task:
        """Waits until the task is done. Raises its error as an `ApiError`, or `WaitTimeout`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            task = await self.task(task_id)
            if task.error is not None:
                raise ApiError.of(status_of(task.error), task.error)
            if task.result is not None:
                return task
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"the {task.kind} {task_id} is still {task.state} after {timeout_s:g} s")
            await asyncio.sleep(every_s)

    # -- files

    async def artifacts(self, job_id: str, kinds: Sequence[str] = ()) -> list[Artifact]:
        """The files that a job left behind. Kinds: model, merged, checkpoint, log, metrics and manifest."""
        return await self._do(calls.artifacts(job_id, kinds))

    async def download(self, job_id: str, folder: str | Path, kinds: Sequence[str] = ("model",)) -> list[Path]:
        """Downloads a job's files into a directory and checks their hashes. Resumes interrupted downloads.

        Raises `DamagedDownload` if a file's hash differs from the service's.
        """
        found = await self.artifacts(job_id, kinds)
        return [await self._download(Download(file, Path(folder)), file.href) for file in found]

    async def merge(self, job_id: str, wait_s: float = 0.0) -> Task:
        """Merges base and adapter into full weights, as files of the kind `merged`. `result` is None until it is done."""
        return await self._do(calls.merge(job_id, wait_s))

    async def push(self, job_id: str, name: str, kind: str = "model", private: bool = True, wait_s: float = 0.0) -> Task:
        """Pushes the model to the hub configured on the service."""
        return await self._do(calls.push(job_id, name, kind, private, wait_s))

    async def delete_artifacts(self, job_id: str, kinds: Sequence[str] = ("checkpoint", "merged")) -> Removal:
        """Deletes files of a finished job, and returns what was deleted and what stays."""
        return await self._do(calls.delete_artifacts(job_id, kinds))

    # -- datasets

    async def upload_dataset(self, path: str | Path, name: str | None = None, **reading: Unpack[Reading]) -> Dataset:
        """Streams a file to the service, which checks every row. `reading`: map, encoding, sheet, threshold, on_invalid.

        Raises `InvalidRequest`. If a file can be read in several ways, its `question` says which option to set.
        """
        call = calls.upload(name or Path(path).name, reading)
        return call.read(read_json(await self._send(call, content=lambda: _chunks(Path(path)))))

    async def check_dataset(self, path: str | Path, **reading: Unpack[Reading]) -> DatasetCheck:
        """What an upload of the file would report. The service stores nothing."""
        call = calls.check_dataset(reading)
        return call.read(read_json(await self._send(call, content=lambda: _chunks(Path(path)))))

    async def dataset(self, dataset_id: str) -> Dataset:
        return await self._do(calls.dataset(dataset_id))

    async def datasets(self) -> AsyncIterator[Dataset]:
        """All datasets, newest first, page by page."""
        cursor = None
        while True:
            page = await self._do(calls.datasets(200, cursor))
            for fields in page["datasets"]:
                yield Dataset.model_validate(fields)
            cursor = page["next_cursor"]
            if not cursor:
                return

    async def rows(self, dataset_id: str, first: int = 1, count: int = 20) -> list[dict[str, Any]]:
        """`count` training rows as they are in the file, starting at row `first`."""
        return await self._do(calls.rows(dataset_id, first, count))

    async def broken_rows(self, dataset_id: str) -> bytes:
        """The rows that an upload with `on_invalid="skip"` skipped, as a CSV file for a spreadsheet."""
        return (await self._send(Call("GET", f"/v1/datasets/{dataset_id}/broken", bytes))).content

    async def preview(self, dataset_id: str, model_name: str, wait_s: float = 60.0, **options: Any) -> Task:
        """Rows as a model sees them, in `result`. `options`: method, first_row, rows, max_length and others."""
        return await self._do(calls.preview(dataset_id, model_name, wait_s, options))

    async def report(self, dataset_id: str, model: str | None = None, wait_s: float = 60.0) -> Task:
        """What a dataset contains and which shortcuts it offers, in `result`. With a model's name, also in its tokens."""
        return await self._do(calls.report(dataset_id, model, wait_s))

    async def delete_dataset(self, dataset_id: str) -> dict[str, Any]:
        return await self._do(calls.delete_dataset(dataset_id))

    # -- keys and the service

    async def methods(self) -> list[Method]:
        """All methods, each with its paper, its rows, a sample job, and every field of its job spec."""
        return await self._do(calls.methods())

    async def create_key(self, **fields: Any) -> Key:
        """Creates an API key. Only this answer contains the key itself, in `key`. `fields`: tenant, scopes, name, ..."""
        return await self._do(calls.create_key(fields))

    async def keys(self) -> list[Key]:
        return await self._do(calls.keys())

    async def revoke_key(self, key_id: str) -> Key:
        return await self._do(calls.revoke_key(key_id))

    async def session(self) -> dict[str, Any]:
        """The caller's identity, as the service sees it."""
        return await self._do(calls.session())

    async def readiness(self) -> dict[str, Any]:
        """The state of the service's parts, even if it is not ready."""
        try:
            found = await self._http.get("/readyz", timeout=self._timeout_s)
        except httpx.TransportError as error:
            raise unreachable(self.base_url, error) from error
        if found.status_code != 503:
            raise_for(found)
        return read_json(found)

    async def ready(self) -> bool:
        """Whether the service is ready for requests."""
        try:
            return (await self._http.get("/readyz", timeout=self._timeout_s)).is_success
        except httpx.TransportError:
            return False

    # -- the wire

    def _bound(self, fields: dict[str, Any]) -> AsyncJob:
        job = AsyncJob.model_validate(fields)
        job._client = self
        return job

    async def _job(self, call: Call[Any]) -> AsyncJob:
        return self._bound(await self._do(call))

    async def _do(self, call: Call[Result]) -> Result:
        return call.read(read_json(await self._send(call)))

    async def _send(self, call: Call[Any], content: Any = None) -> httpx.Response:
        tried = 0
        while True:
            found: httpx.Response | httpx.TransportError
            try:
                body = {} if content is None else {"content": content()}
                found = await self._http.request(call.method, call.path, **call.options(self._timeout_s), **body)
            except httpx.TransportError as error:
                found = error
            delay = self._retries.delay_s(call, tried, found)
            if delay is None:
                break
            tried += 1
            await asyncio.sleep(delay)
        if isinstance(found, httpx.TransportError):
            raise unreachable(self.base_url, found) from found
        raise_for(found)
        return found

    async def _stream_events(
        self, method: str, path: str, headers: Mapping[str, str], **options: Any
    ) -> AsyncGenerator[Event]:
        reader = EventReader()
        async with self._stream(method, path, headers=dict(headers), **options) as response:
            async for line in response.aiter_lines():
                event = reader.feed(line)
                if event is not None:
                    yield event

    @asynccontextmanager
    async def _stream(self, method: str, path: str, **options: Any) -> AsyncGenerator[httpx.Response]:
        try:
            async with self._http.stream(method, path, timeout=STREAM_TIMEOUT_S, **options) as response:
                if response.is_error:
                    await response.aread()
                    raise_for(response)
                yield response
        except httpx.TransportError as error:
            raise unreachable(self.base_url, error) from error

    async def _download(self, download: Download, href: str) -> Path:
        if download.is_needed:
            async with self._stream("GET", href, headers=download.headers()) as response:
                download.begin(response.status_code)
                async for data in response.aiter_bytes(_DOWNLOAD_CHUNK_BYTES):
                    download.write(data)
        return download.finish()


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(_UPLOAD_CHUNK_BYTES):
            yield data
