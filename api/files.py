"""Sends files: streamed, optionally one range, with the hash, and in a form that no browser runs."""

import base64
import re
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import error_response
from trainer_core.errors import error_dict
from trainer_core.wording import say

_CHUNK_BYTES = 2**20
# One range. A request for several gets the whole file, as RFC 9110 allows.
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


def file_response(file: BinaryIO, size: int, name: str, sha256: str, headers: dict[str, str | None]) -> Response:
    """The reply to a GET of a file. Closes the file when the reply ends, for whatever reason.

    Args:
        size: the file's size in bytes.
        name: the suggested file name.
        headers: the request's headers `range`, `if-range` and `if-none-match`.
    """
    tag = f'"{sha256}"'
    shared = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Repr-Digest": f"sha-256=:{_base64(sha256)}:",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": _disposition(name),
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    if headers.get("if-none-match") in (tag, "*"):
        file.close()
        return Response(status_code=304, headers=shared)
    wanted = headers.get("range") if headers.get("if-range") in (None, tag) else None
    span = _span(wanted, size) if wanted else None
    if span is None:
        whole = {**shared, "Content-Length": str(size)}
        return _Closing(file, _read(file, 0, size), 200, whole)
    first, last = span
    if first >= size or last < first:
        file.close()
        response = error_response(error_dict("spec_invalid", say("range_outside", size=size)), 416)
        response.headers.update({**shared, "Content-Range": f"bytes */{size}"})
        return response
    part = {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last - first + 1)}
    return _Closing(file, _read(file, first, last - first + 1), 206, {**shared, **part})


def table_response(file: BinaryIO, name: str) -> Response:
    """The response to a GET of a CSV file. It closes the file when it ends."""
    size = file.seek(0, 2)
    headers = {
        "Cache-Control": "private, no-cache",
        "Content-Disposition": _disposition(name),
        "Content-Length": str(size),
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return _Closing(file, _read(file, 0, size), 200, headers, "text/csv; charset=utf-8")


def _span(wanted: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a range, or None unless the header is a single range."""
    found = _RANGE.match(wanted.strip())
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if len(first) > 18 or len(last) > 18:
        return size, size
    if not first:
        return max(0, size - int(last)), (size - 1 if int(last) else -1)
    return int(first), min(int(last) if last else size - 1, size - 1)


class _Closing(StreamingResponse):
    """Closes its file even if nothing was read: in the reply to a HEAD, or to a client that left."""

    def __init__(
        self,
        file: BinaryIO,
        content: Iterator[bytes],
        status: int,
        headers: dict[str, str],
        media_type: str = "application/octet-stream",
    ) -> None:
        super().__init__(content, status, headers, media_type)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def _read(file: BinaryIO, first: int, count: int) -> Iterator[bytes]:
    file.seek(first)
    while count > 0 and (data := file.read(min(_CHUNK_BYTES, count))):
        count -= len(data)
        yield data


def _disposition(name: str) -> str:
    """RFC 6266: a plain name for old clients, and the full one encoded."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _base64(hexadecimal: str) -> str:

    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()
