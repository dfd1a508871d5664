"""The user-facing side: the Python client, the command line, the local stack.

from tafdil import Client
"""

from tafdil.async_client import AsyncClient, AsyncJob
from tafdil.client import Client, Job
from tafdil.errors import (
    ApiError,
    Conflict,
    DamagedDownload,
    Forbidden,
    InvalidRequest,
    JobFailed,
    NotFound,
    RateLimited,
    ServerError,
    StackError,
    TafdilClientError,
    TooLarge,
    Unauthorized,
    Unreachable,
    WaitTimeout,
)

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncJob",
    "Client",
    "Conflict",
    "DamagedDownload",
    "Forbidden",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "NotFound",
    "RateLimited",
    "ServerError",
    "StackError",
    "TafdilClientError",
    "TooLarge",
    "Unauthorized",
    "Unreachable",
    "WaitTimeout",
]
