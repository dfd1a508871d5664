"""What the client and the local stack raise.

TafdilClientError
├── ApiError       the service answered with an error; `code` is one of the documented codes
├── Unreachable    no answer
├── DamagedDownload   a file that is not what the service says it is
└── StackError     the local stack could not be started
"""

from typing import Any


class TafdilClientError(Exception):
    """Root of all errors of this package."""


class ApiError(TafdilClientError):
    """An error that the service told.

    Attributes:
        status: the HTTP status.
        code, hint, details: as in the reply's `error`.
    """

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        self.status = status
        self.code: str = error.get("code", "internal")
        self.message: str = error.get("message", f"HTTP {status}")
        self.hint: str = error.get("hint", "")
        self.details: list[dict[str, Any]] = error.get("details", [])
        super().__init__(f"{self.message} [{self.code}]" + (f" {self.hint}" if self.hint else ""))


class Unreachable(TafdilClientError):
    """The service did not answer."""


class DamagedDownload(TafdilClientError):
    """A downloaded file has another hash than the service says."""


class StackError(TafdilClientError):
    """The local stack could not be started, and why."""
