"""Logging for every process of the service: text lines for people, or JSON with job and attempt for machines."""

import json
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from jobs import tracing

_about: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039  # never changed in place


def configure() -> None:
    """Sets up logging from `TAFDIL_LOG_LEVEL` (default INFO) and `TAFDIL_LOG_FORMAT` (`text` or `json`)."""
    handler = logging.StreamHandler(sys.stderr)
    if os.environ.get("TAFDIL_LOG_FORMAT", "text") == "json":
        handler.setFormatter(JsonLines())
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
            # uvicorn's own handlers write text.
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=os.environ.get("TAFDIL_LOG_LEVEL", "INFO"), handlers=[handler])


@contextmanager
def about(**fields: str | int) -> Generator[None]:
    """Adds `job`, `attempt` or `task` to every line that this thread logs in the block."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message`, `process`, fields of `about`, `trace`, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            **_about.get(),
        }
        if trace := tracing.current_trace():
            line["trace"] = trace
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
