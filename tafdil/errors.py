"""Errors of the client, the command line and the local stack.

TafdilClientError
├── ApiError            the service answered with an error; `code` is one of the documented codes
│   ├── InvalidRequest  422: the spec, the data or the model must change first
│   ├── Unauthorized    401: a missing or invalid key
│   ├── Forbidden       403: the key or the address may not do this
│   ├── NotFound        404: no such job, dataset, ...
│   ├── Conflict        409: the action does not apply to the current state
│   ├── TooLarge        413
│   ├── RateLimited     429: `retry_after_s` says when to retry
│   └── ServerError     5xx: a defect or an outage of the service
├── JobFailed           the job did not succeed; `job` is its last state
├── WaitTimeout         (also a TimeoutError) the job or task was not over in time
├── Unreachable         no answer
├── DamagedDownload     a file whose hash differs from the service's
└── StackError          the local stack could not be started
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tafdil.models import JobFields


class TafdilClientError(Exception):
    """Root of all errors of this package."""


class ApiError(TafdilClientError):
    """An error that the service returned.

    Attributes:
        status: the HTTP status.
        code, message, message_code, params, hint, details, retryable, user_fault: as in the reply's `error`.
        question: for a file that can be read in several ways (`data_unclear`), a dict with `about` (the option to set),
            `choices`, `guess` and the first `rows`; otherwise None.
        retry_after_s: from `Retry-After`, in seconds; None without it.
    """

    def __init__(self, status: int, error: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        self.status, self.retry_after_s = status, retry_after_s
        self.code: str = error.get("code", "internal")
        self.message: str = error.get("message", f"HTTP {status}")
        self.message_code: str | None = error.get("message_code")
        self.params: dict[str, Any] = error.get("params", {})
        self.hint: str = error.get("hint", "")
        self.details: list[dict[str, Any]] = error.get("details", [])
        self.question: dict[str, Any] | None = error.get("question")
        self.retryable: bool = error.get("retryable", status >= 500)
        self.user_fault: bool = error.get("user_fault", status < 500)
        super().__init__(f"{self.message} [{self.code}]" + (f" {self.hint}" if self.hint else ""))

    @classmethod
    def of(cls, status: int, error: Mapping[str, Any], retry_after_s: float | None = None) -> "ApiError":
        """The error, as an instance of its status's class."""
        kind = _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
        return kind(status, error, retry_after_s)


class InvalidRequest(ApiError):
    """The request must change first; `details` says where."""


class Unauthorized(ApiError):
    """A missing or invalid API key."""


class Forbidden(ApiError):
    """This key or address may not do this."""


class NotFound(ApiError):
    """It does not exist, or belongs to another tenant."""


class Conflict(ApiError):
    """The action does not apply to the current state."""


class TooLarge(ApiError):
    """More bytes than allowed."""


class RateLimited(ApiError):
    """Too many requests, or a quota reached."""


class ServerError(ApiError):
    """A defect or an outage of the service."""


def status_of(error: Mapping[str, Any]) -> int:
    """The HTTP status that a stored error would have had as a reply."""
    known = {"not_found": 404, "forbidden": 403, "state_conflict": 409, "unauthorized": 401, "rate_limited": 429}
    return known.get(error.get("code", ""), 422 if error.get("user_fault") else 500)


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
    429: RateLimited,
}


class JobFailed(TafdilClientError):
    """A job that the caller waited for did not succeed."""

    def __init__(self, job: "JobFields") -> None:
        self.job = job
        super().__init__(f"job {job.id} {job.describe()}")


class WaitTimeout(TafdilClientError, TimeoutError):
    """The job or task was not over in time. It continues on the service."""


class Unreachable(TafdilClientError):
    """The service did not answer. If nothing answered at all, `url` and `reason` say where and why."""

    def __init__(self, message: str, url: str = "", reason: str = "") -> None:
        self.url, self.reason = url, reason
        super().__init__(message)


class DamagedDownload(TafdilClientError):
    """A downloaded file's hash differs from the service's."""


class StackError(TafdilClientError):
    """The local stack could not be started. The message says why."""
