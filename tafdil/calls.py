"""The HTTP API as data: one function per request, and how to read its answer. Both clients share it.

No network here: `tafdil.client` and `tafdil.async_client` send the `Call`s.
"""

import json
import os
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from tafdil.errors import ApiError, Unreachable
from tafdil.models import (
    Artifact,
    Attempt,
    Comparison,
    Dataset,
    DatasetCheck,
    Event,
    HeldOut,
    Key,
    Method,
    MetricPoint,
    Reading,
    Removal,
    Task,
)

Result = TypeVar("Result")

# How long the service may take to read a workbook or a large table after the last byte.
_READING_S = 600.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 10.0
# Answers of a proxy or of a service that is starting: the request was not handled.
_PASSING = frozenset({502, 503, 504})


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request.

    Attributes:
        read: converts the reply's JSON to the result.
        is_repeatable: whether it is idempotent: it only reads, or carries an Idempotency-Key.
        wait_s: how long the service is asked to wait before it answers.
    """

    method: str
    path: str
    read: Callable[[Any], Result]
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    is_repeatable: bool = True
    wait_s: float = 0.0

    def options(self, timeout_s: float) -> dict[str, Any]:
        """Keyword arguments for httpx."""
        wanted = {name: value for name, value in self.params.items() if value is not None and value != []}
        sent = {} if self.body is None else {"json": self.body}
        return {"params": wanted, "headers": dict(self.headers), "timeout": timeout_s + self.wait_s, **sent}


@dataclass(frozen=True)
class Retries:
    """When to retry a request: at most `most` times, with growing delays, and only if that cannot repeat an effect."""

    most: int = 3

    def delay_s(self, call: Call[Any], tried: int, found: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds to wait before the next try; None: do not retry.

        A request that was never sent is always retried; one whose answer was lost only if it is repeatable.
        """
        if tried >= self.most:
            return None
        backoff = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**tried) * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
        if isinstance(found, httpx.Response):
            told = retry_after_s(found)
            if found.status_code == 429 and told is not None and told <= _LONGEST_DELAY_S:
                return max(told, backoff)
            return backoff if found.status_code in _PASSING and call.is_repeatable else None
        never_left = isinstance(found, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        return backoff if never_left or call.is_repeatable else None


def retry_after_s(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None


def raise_for(response: httpx.Response) -> None:
    """Raises the `ApiError` for an error reply; does nothing for any other."""
    if not response.is_error:
        return
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": f"HTTP {response.status_code}: {response.text[:200]}"}
    raise ApiError.of(response.status_code, error, retry_after_s(response))


def read_json(response: httpx.Response) -> Any:
    """The JSON of a reply. Raises `Unreachable` for one that no Tafdil service sends: a redirect, or a proxy's page."""
    try:
        if response.is_success or response.is_error:
            return response.json()
    except ValueError:
        pass
    where = response.headers.get("Location")
    to = f" that leads to {where}" if where else ""
    raise Unreachable(f"{response.url} answered HTTP {response.status_code}{to}, and no JSON: is that a Tafdil service?")


def authorization(key: str | None) -> dict[str, str]:
    """The header for a key; empty without one."""
    found = key or os.environ.get("TAFDIL_API_KEY")
    return {"Authorization": f"Bearer {found}"} if found else {}


def unreachable(base_url: str, error: Exception) -> Unreachable:
    reason = str(error) or type(error).__name__
    return Unreachable(f"no response from {base_url}: {reason}", base_url, reason)


class EventReader:
    """Parses server-sent events from the lines of a stream."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Event | None:
        """The event that a line completes, if any."""
        name, _, value = line.partition(": ")
        if line and name:
            self._fields[name] = value
        elif self._fields:
            fields, self._fields = self._fields, {}
            number = int(fields["id"]) if "id" in fields else None
            return Event(id=number, event=fields["event"], data=json.loads(fields["data"]))
        return None


def _same(answer: Any) -> Any:
    return answer


def _listed(name: str, read: Callable[[Any], Result]) -> Callable[[Any], list[Result]]:
    return lambda answer: [read(one) for one in answer[name]]


def _keyed(idempotency_key: str | None) -> dict[str, str]:
    """Every request that creates a job carries a key, so that it can be retried if its answer is lost."""
    return {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}


# -- jobs


def submit(spec: Mapping[str, Any], idempotency_key: str | None) -> Call[Any]:
    return Call("POST", "/v1/jobs", _same, body=dict(spec), headers=_keyed(idempotency_key))


def validate(spec: Mapping[str, Any], wait_s: float) -> Call[Task]:
    return Call("POST", "/v1/jobs/validate", Task.model_validate, {"wait_s": wait_s}, dict(spec), wait_s=wait_s)


def rerun(job_id: str, from_checkpoint: bool, idempotency_key: str | None) -> Call[Any]:
    body = {"from_checkpoint": from_checkpoint}
    return Call("POST", f"/v1/jobs/{job_id}/rerun", _same, body=body, headers=_keyed(idempotency_key))


def clone(job_id: str, changes: Mapping[str, Any], idempotency_key: str | None) -> Call[Any]:
    return Call("POST", f"/v1/jobs/{job_id}/clone", _same, body=dict(changes), headers=_keyed(idempotency_key))


def job(job_id: str) -> Call[Any]:
    return Call("GET", f"/v1/jobs/{job_id}", _same)


def jobs(state: str | None, method: str | None, limit: int | None, cursor: str | None) -> Call[dict[str, Any]]:
    params = {"state": state, "method": method, "limit": limit, "cursor": cursor}
    return Call("GET", "/v1/jobs", _same, params)


def cancel(job_id: str, save_checkpoint: bool) -> Call[Any]:
    body = {"save_checkpoint": save_checkpoint}
    return Call("POST", f"/v1/jobs/{job_id}/cancel", _same, body=body, is_repeatable=False)


def pause(job_id: str) -> Call[Any]:
    return Call("POST", f"/v1/jobs/{job_id}/pause", _same, is_repeatable=False)


def resume(job_id: str, max_hours: float | None) -> Call[Any]:
    body = {"max_hours": max_hours}
    return Call("POST", f"/v1/jobs/{job_id}/resume", _same, body=body, is_repeatable=False)


def attempts(job_id: str) -> Call[list[Attempt]]:
    return Call("GET", f"/v1/jobs/{job_id}/attempts", _listed("attempts", Attempt.model_validate))


def metrics(job_id: str, names: Sequence[str], **limits: bool | int | None) -> Call[dict[str, list[MetricPoint]]]:
    params = {"name": list(names), **limits}
    return Call("GET", f"/v1/jobs/{job_id}/metrics", lambda answer: answer["series"], params)


def metadata(job_id: str) -> Call[dict[str, Any]]:
    return Call("GET", f"/v1/jobs/{job_id}/metadata", _same)


def delete_job(job_id: str) -> Call[Removal]:
    return Call("DELETE", f"/v1/jobs/{job_id}", Removal.model_validate, is_repeatable=False)


# -- answers


def compare(job_id: str, prompt: str, wait_s: float, options: Mapping[str, Any]) -> Call[Comparison]:
    path, body = f"/v1/jobs/{job_id}/compare", {"prompt": prompt, **options}
    return Call("POST", path, Comparison.model_validate, {"wait_s": wait_s}, body, wait_s=wait_s, is_repeatable=False)


def comparison(job_id: str, comparison_id: str) -> Call[Comparison]:
    return Call("GET", f"/v1/jobs/{job_id}/comparisons/{comparison_id}", Comparison.model_validate)


def comparisons(job_id: str, limit: int) -> Call[list[Comparison]]:
    read = _listed("comparisons", Comparison.model_validate)
    return Call("GET", f"/v1/jobs/{job_id}/comparisons", read, {"limit": limit})


def compare_held_out(job_id: str, wait_s: float, options: Mapping[str, Any]) -> Call[HeldOut]:
    path = f"/v1/jobs/{job_id}/compare/held_out"
    return Call("POST", path, HeldOut.model_validate, {"wait_s": wait_s}, dict(options), wait_s=wait_s, is_repeatable=False)


def held_out(job_id: str, comparison_id: str) -> Call[HeldOut]:
    return Call("GET", f"/v1/jobs/{job_id}/compare/held_out/{comparison_id}", HeldOut.model_validate)


def held_outs(job_id: str, limit: int) -> Call[list[HeldOut]]:
    read = _listed("comparisons", HeldOut.model_validate)
    return Call("GET", f"/v1/jobs/{job_id}/compare/held_out", read, {"limit": limit})


def task(task_id: str) -> Call[Task]:
    return Call("GET", f"/v1/tasks/{task_id}", Task.model_validate)


def cancel_task(task_id: str) -> Call[Task]:
    return Call("POST", f"/v1/tasks/{task_id}/cancel", Task.model_validate, is_repeatable=False)


# -- files


def artifacts(job_id: str, kinds: Sequence[str]) -> Call[list[Artifact]]:
    return Call("GET", f"/v1/jobs/{job_id}/artifacts", _listed("artifacts", Artifact.model_validate), {"kind": list(kinds)})


def delete_artifacts(job_id: str, kinds: Sequence[str]) -> Call[Removal]:
    return Call("DELETE", f"/v1/jobs/{job_id}/artifacts", Removal.model_validate, {"kind": list(kinds)})


def merge(job_id: str, wait_s: float) -> Call[Task]:
    path, wanted = f"/v1/jobs/{job_id}/merge", {"wait_s": wait_s}
    return Call("POST", path, Task.model_validate, wanted, wait_s=wait_s, is_repeatable=False)


def push(job_id: str, name: str, kind: str, private: bool, wait_s: float) -> Call[Task]:
    body = {"name": name, "kind": kind, "private": private}
    path, wanted = f"/v1/jobs/{job_id}/push", {"wait_s": wait_s}
    return Call("POST", path, Task.model_validate, wanted, body, wait_s=wait_s, is_repeatable=False)


# -- datasets


def upload(name: str, reading: Reading) -> Call[Dataset]:
    """Without the body, which the client streams."""
    params = {"name": name, **_read_as(reading)}
    return Call("POST", "/v1/datasets", Dataset.model_validate, params, is_repeatable=False, wait_s=_READING_S)


def check_dataset(reading: Reading) -> Call[DatasetCheck]:
    """Without the body, which the client streams."""
    return Call("POST", "/v1/datasets/check", DatasetCheck.model_validate, _read_as(reading), wait_s=_READING_S)


def _read_as(reading: Reading) -> dict[str, Any]:
    pairs = [f"{field}:{column}" for field, column in (reading.get("map") or {}).items()]
    return {**reading, "map": pairs}


def dataset(dataset_id: str) -> Call[Dataset]:
    return Call("GET", f"/v1/datasets/{dataset_id}", Dataset.model_validate)


def datasets(limit: int, cursor: str | None) -> Call[dict[str, Any]]:
    return Call("GET", "/v1/datasets", _same, {"limit": limit, "cursor": cursor})


def rows(dataset_id: str, first: int, count: int) -> Call[list[dict[str, Any]]]:
    path = f"/v1/datasets/{dataset_id}/rows"
    return Call("GET", path, lambda answer: answer["rows"], {"first": first, "count": count})


def preview(dataset_id: str, model_name: str, wait_s: float, options: Mapping[str, Any]) -> Call[Task]:
    path, body = f"/v1/datasets/{dataset_id}/preview", {"model_name": model_name, **options}
    return Call("POST", path, Task.model_validate, {"wait_s": wait_s}, body, wait_s=wait_s)


def report(dataset_id: str, model: str | None, wait_s: float) -> Call[Task]:
    params = {"model": model, "wait_s": wait_s}
    return Call("GET", f"/v1/datasets/{dataset_id}/report", Task.model_validate, params, wait_s=wait_s)


def delete_dataset(dataset_id: str) -> Call[dict[str, Any]]:
    return Call("DELETE", f"/v1/datasets/{dataset_id}", _same, is_repeatable=False)


# -- keys


def create_key(fields: Mapping[str, Any]) -> Call[Key]:
    return Call("POST", "/v1/keys", Key.model_validate, body=dict(fields), is_repeatable=False)


def keys() -> Call[list[Key]]:
    return Call("GET", "/v1/keys", _listed("keys", Key.model_validate))


def revoke_key(key_id: str) -> Call[Key]:
    return Call("DELETE", f"/v1/keys/{key_id}", Key.model_validate)


def methods() -> Call[list[Method]]:
    return Call("GET", "/v1/methods", _listed("methods", Method.model_validate))


def session() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/session", _same)
