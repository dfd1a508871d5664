"""A small client of the HTTP API. Returns the API's JSON as dictionaries."""

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tafdil.errors import ApiError, DamagedDownload, Unreachable

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
_UPLOAD_CHUNK_BYTES = 2**16
_DOWNLOAD_CHUNK_BYTES = 2**20


class Client:
    """Talks to one Tafdil service.

        with Client("http://127.0.0.1:8000") as client:
            dataset = client.upload_dataset("rows.jsonl")
            job = client.submit({"method": "kto", "model_name": ..., "dataset_id": dataset["id"]})
            job = client.wait(job["id"])

    Every method raises `ApiError` when the service refuses and `Unreachable` when it does not answer.
    """

    def __init__(self, base_url: str = "http://127.0.0.1:8000", timeout_s: float = 30.0) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s)
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- jobs

    def submit(self, spec: dict[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """Queues a job and returns it. Sent again with the same key, it returns the first one's job."""
        return self._json("POST", "/v1/jobs", json=spec, headers=_key_header(idempotency_key))

    def validate(self, spec: dict[str, Any], wait_s: float = 60.0) -> dict[str, Any]:
        """A dry run: what the job would do, in `result`, which is None if `wait_s` was too short. Nothing is queued."""
        return self._asked("/v1/jobs/validate", spec, wait_s)

    def clone(self, job_id: str, idempotency_key: str | None = None, **changes: Any) -> dict[str, Any]:
        """A new job with the spec of another one, changed."""
        return self._json("POST", f"/v1/jobs/{job_id}/clone", json=changes, headers=_key_header(idempotency_key))

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job_id}")

    def jobs(self, state: str | None = None, method: str | None = None) -> Iterator[dict[str, Any]]:
        """Every job, newest first, page by page."""
        query: dict[str, Any] = {"state": state, "method": method}
        while True:
            page = self._json("GET", "/v1/jobs", params={name: value for name, value in query.items() if value})
            yield from page["jobs"]
            query["cursor"] = page["next_cursor"]
            if not query["cursor"]:
                return

    def cancel(self, job_id: str, save_checkpoint: bool = False) -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{job_id}/cancel", json={"save_checkpoint": save_checkpoint})

    def pause(self, job_id: str) -> dict[str, Any]:
        """Asks for a pause; the job is `paused` once its checkpoint is saved and its process gone."""
        return self._json("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{job_id}/resume")

    def rerun(self, job_id: str, from_checkpoint: bool = False, idempotency_key: str | None = None) -> dict[str, Any]:
        """A new job with the spec of one that is over."""
        headers = _key_header(idempotency_key)
        return self._json("POST", f"/v1/jobs/{job_id}/rerun", json={"from_checkpoint": from_checkpoint}, headers=headers)

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Every try of a job, the first one first."""
        return self._json("GET", f"/v1/jobs/{job_id}/attempts")["attempts"]

    def wait(self, job_id: str, timeout_s: float | None = None, every_s: float = 0.5) -> dict[str, Any]:
        """The job once it is over, whatever its end. Raises `TimeoutError` after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            if job["state"] in FINAL_STATES:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is still {job['state']} after {timeout_s:g} s")
            time.sleep(every_s)

    def metrics(
        self, job_id: str, *, only_current: bool = False, max_points: int | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """Series by metric name; each point has attempt, step and value.

        Args:
            only_current: no step comes twice.
            max_points: of a curve, the fewest that keep its shape.
        """
        wanted = {"only_current": only_current} | ({"max_points": max_points} if max_points else {})
        return self._json("GET", f"/v1/jobs/{job_id}/metrics", params=wanted)["series"]

    def metadata(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job_id}/metadata")

    def logs(self, job_id: str) -> str:
        return self._request("GET", f"/v1/jobs/{job_id}/logs").text

    def events(self, job_id: str, after: int = 0) -> Generator[dict[str, Any]]:
        """Events as they happen, each with `id`, `event` and `data`, until the job is over."""
        headers = {"Last-Event-ID": str(after)}
        with self._stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            for fields in _fields(response):
                yield {"id": int(fields["id"]), "event": fields["event"], "data": json.loads(fields["data"])}

    def compare(self, job_id: str, prompt: str, wait_s: float = 60.0, **options: Any) -> dict[str, Any]:
        """A comparison. `options`: max_length, temperature, top_p, seed. Its `result` is None if `wait_s` was too short."""
        return self._asked(f"/v1/jobs/{job_id}/compare", {"prompt": prompt, **options}, wait_s)

    def compare_events(self, job_id: str, prompt: str, **options: Any) -> Generator[dict[str, Any]]:
        """A comparison as it grows: events `partial` with both texts, then `result` with the comparison, or `error`."""
        body, wanted = {"prompt": prompt, **options}, {"stream": True}
        with self._stream("POST", f"/v1/jobs/{job_id}/compare", params=wanted, json=body) as response:
            for fields in _fields(response):
                yield {"event": fields["event"], "data": json.loads(fields["data"])}

    # -- files

    def artifacts(self, job_id: str, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The files that a job left behind; of the kinds model, merged, checkpoint, log, metrics and manifest."""
        return self._json("GET", f"/v1/jobs/{job_id}/artifacts", params={"kind": list(kinds)})["artifacts"]

    def download(self, job_id: str, folder: str | Path, kinds: Sequence[str] = ("model",)) -> list[Path]:
        """Downloads files of a job into a directory and checks their hashes. What was interrupted goes on where it stood.

        Files of the model and the merged weights get their names below the model's directory, others their last name.
        Raises `DamagedDownload` when a file is not what the service says it is.
        """
        return [self._download(file, Path(folder)) for file in self.artifacts(job_id, kinds)]

    def _download(self, file: dict[str, Any], folder: Path) -> Path:
        target = folder / _local_name(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{file['sha256'][:16]}.part")
        done = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={done}-", "If-Range": f'"{file["sha256"]}"'} if 0 < done < file["size_bytes"] else {}
        if done != file["size_bytes"] or not done:
            with self._stream("GET", file["href"], headers=headers) as response, part.open("ab") as output:
                if response.status_code != 206:
                    output.truncate(0)
                for data in response.iter_bytes(_DOWNLOAD_CHUNK_BYTES):
                    output.write(data)
        with part.open("rb") as found:
            if hashlib.file_digest(found, "sha256").hexdigest() != file["sha256"]:
                part.unlink()
                raise DamagedDownload(f"{file['name']} is not what the service says it is; download it again")
        part.replace(target)
        return target

    def merge(self, job_id: str, wait_s: float = 0.0) -> dict[str, Any]:
        """Asks for full weights of base and adapter, as files of the kind `merged`. Its `result` is None until they are."""
        return self._json("POST", f"/v1/jobs/{job_id}/merge", params={"wait_s": wait_s}, timeout=wait_s + self._timeout_s)

    def delete_artifacts(self, job_id: str, kinds: Sequence[str] = ("checkpoint", "merged")) -> dict[str, Any]:
        """Deletes files of a job that is over; says which, and what stays."""
        return self._json("DELETE", f"/v1/jobs/{job_id}/artifacts", params={"kind": list(kinds)})

    def delete_job(self, job_id: str) -> dict[str, Any]:
        """Deletes a job that is over, with all it has."""
        return self._json("DELETE", f"/v1/jobs/{job_id}")

    # -- datasets

    def upload_dataset(self, path: str | Path, name: str | None = None) -> dict[str, Any]:
        """Streams a file to the service and returns the dataset."""

        def chunks() -> Iterator[bytes]:
            with Path(path).open("rb") as file:
                while data := file.read(_UPLOAD_CHUNK_BYTES):
                    yield data

        return self._json("POST", "/v1/datasets", params={"name": name or Path(path).name}, content=chunks())

    def dataset(self, dataset_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/datasets/{dataset_id}")

    def preview(self, dataset_id: str, model_name: str, wait_s: float = 60.0, **options: Any) -> dict[str, Any]:
        """Rows as a model sees them, in `result`. `options`: method, first_row, rows, max_length and others."""
        return self._asked(f"/v1/datasets/{dataset_id}/preview", {"model_name": model_name, **options}, wait_s)

    # -- the wire

    def _asked(self, path: str, body: dict[str, Any], wait_s: float) -> dict[str, Any]:
        return self._json("POST", path, params={"wait_s": wait_s}, json=body, timeout=wait_s + self._timeout_s)

    def ready(self) -> bool:
        """Whether the service can do its work."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unreachable(f"no answer from {self._http.base_url}: {error}") from error
        _raise_for(response)
        return response

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return self._request(method, path, **options).json()

    def _stream(self, method: str, path: str, **options: Any) -> "_Stream":
        return _Stream(self._http, method, path, options)


def _local_name(file: dict[str, Any]) -> str:
    """Of a model's file its path below the model, of others the last part. Never a way out of the directory."""
    parts = [part for part in file["name"].split("/") if part not in ("", ".", "..")]
    if file["kind"] == "checkpoint":
        return "/".join(parts[2:])
    return "/".join(parts[2:]) if file["kind"] == "model" else "/".join(parts[1:])


def _fields(response: httpx.Response) -> Generator[dict[str, str]]:
    """The fields of each server-sent event."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if line and name:
            fields[name] = value
        elif fields:
            yield fields
            fields = {}


class _Stream:
    """A streamed reply whose errors are read and raised like any other's."""

    def __init__(self, http: httpx.Client, method: str, path: str, options: dict[str, Any]) -> None:
        # The server pings every 15 s; a minute of silence means that it is gone.
        self._context = http.stream(method, path, timeout=60, **options)

    def __enter__(self) -> httpx.Response:
        try:
            response = self._context.__enter__()
        except httpx.TransportError as error:
            raise Unreachable(str(error)) from error
        if response.is_error:
            response.read()
            self._context.__exit__(None, None, None)
            _raise_for(response)
        return response

    def __exit__(self, *arguments: Any) -> None:
        self._context.__exit__(*arguments)


def _key_header(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key} if idempotency_key else {}


def _raise_for(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": f"HTTP {response.status_code}: {response.text[:200]}"}
    raise ApiError(response.status_code, error)
