"""What the client, the command line and the local stack raise.

TafdilClientError
├── ApiError            the service answered with an error; `code` is one of the documented codes
│   ├── InvalidRequest  422: the spec, the data or the model must change first
│   ├── Unauthorized    401: no key, or one that is not valid
│   ├── Forbidden       403: the key, or the address, may not do this
│   ├── NotFound        404: no such job, dataset, ...
│   ├── Conflict        409: it does not apply to the current state
│   ├── TooLarge        413
│   ├── RateLimited     429: `retry_after_s` says when it may work
│   └── ServerError     5xx: a defect or an outage of the service
├── JobFailed           a job that was waited for did not succeed; `job` is its last state
├── WaitTimeout         (also a TimeoutError) it was not over in time
├── Unreachable         no answer
├── DamagedDownload     a file that is not what the service says it is
└── StackError          the local stack could not be started
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tafdil.models import JobFields


class TafdilClientError(Exception):
    """Root of all errors of this package."""


class ApiError(TafdilClientError):
    """An error that the service told.

    Attributes:
        status: the HTTP status.
        code, message, message_code, params, hint, details, retryable, user_fault: as in the reply's `error`.
        question: for a file that can be read in several ways (`data_unclear`): `about`, the option to set, with `choices`,
            `guess` and the first `rows`; otherwise None.
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
        """The error as the class of its status."""
        kind = _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
        return kind(status, error, retry_after_s)


class InvalidRequest(ApiError):
    """What was sent must change first; `details` says where."""


class Unauthorized(ApiError):
    """No API key, or one that is not valid."""


class Forbidden(ApiError):
    """This key, or this address, may not do this."""


class NotFound(ApiError):
    """There is no such thing, or it is another tenant's."""


class Conflict(ApiError):
    """It does not apply to the current state."""


class TooLarge(ApiError):
    """More bytes than are allowed."""


class RateLimited(ApiError):
    """Too often, or too much."""


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
    """A job that was waited for ended, and not well."""

    def __init__(self, job: "JobFields") -> None:
        self.job = job
        super().__init__(f"job {job.id} {job.describe()}")


class WaitTimeout(TafdilClientError, TimeoutError):
    """It was not over in time. It goes on."""


class Unreachable(TafdilClientError):
    """The service did not answer. `url` and `reason` say which one and why, if nothing at all answered."""

    def __init__(self, message: str, url: str = "", reason: str = "") -> None:
        self.url, self.reason = url, reason
        super().__init__(message)


class DamagedDownload(TafdilClientError):
    """A downloaded file has another hash than the service says."""


class StackError(TafdilClientError):
    """The local stack could not be started, and why."""
