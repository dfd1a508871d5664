"""Traces by OpenTelemetry, from the request to the trainer. Its standard `OTEL_` variables configure them.

When off, this module does nothing and does not load OpenTelemetry. When on, a separate thread sends the spans, so a
collector that is slow or away costs spans, never a request or a run. The provider is not global, because libraries could
send anything through it.
"""

import logging
import os
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

VARIABLE = "TRACEPARENT"
"""The variable that holds the span that started a process."""
Attributes = Mapping[str, str | int | float | None]

# How long a process waits for a collector when it ends.
_CLOSE_S = 1.0
_provider: "TracerProvider | None" = None
_tracer: "Tracer | None" = None


def is_wanted() -> bool:
    """Whether the environment asks for traces."""
    where = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return bool(where) and not is_disabled and os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none"


def is_on() -> bool:
    """Whether this process traces."""
    return _tracer is not None


def configure(service: str, *, at_once: bool = False) -> bool:
    """Turns traces on in this process if the environment asks for them; returns whether they are on. Never raises.

    Call it after a fork, not before: the sending thread does not survive one.

    Args:
        service: the name of this process, unless the environment sets one.
        at_once: send each span as it ends, for processes with few spans that may be killed.
    """
    if _tracer is None and is_wanted():
        try:
            _start(service, at_once)
        except ImportError as error:
            log.error(
                "an OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed, so nothing is traced (%s): "
                "pip install 'tafdil[tracing]'",
                error,
            )
        except Exception as error:
            # The error's text is unpredictable and may include a header.
            log.error("nothing is traced, because OpenTelemetry does not accept its variables: %s", type(error).__name__)
    return is_on()


def close() -> None:
    """Sends waiting spans, for a second at most, and turns traces off."""
    global _provider, _tracer  # noqa: PLW0603  # the process's
    if _provider is not None:
        # OpenTelemetry's own limits are 30 s and the exporter's timeout. The thread ends with the process at the latest.
        ending = threading.Thread(target=_provider.shutdown, daemon=True, name="traces-end")
        ending.start()
        ending.join(_CLOSE_S)
    _provider = _tracer = None


def span(
    name: str, attributes: Attributes | None = None, *, parent: str | None = None, is_server: bool = False
) -> AbstractContextManager[None]:
    """A span around the block, current within it. An exception that leaves the block marks it as failed.

    Args:
        parent: the `traceparent` to continue; None: the current span, or else a new trace.
        is_server: whether the span answers a request.
    """
    return nullcontext() if _tracer is None else _span(_tracer, name, attributes, parent, is_server)


@contextmanager
def _span(
    tracer: "Tracer", name: str, attributes: Attributes | None, parent: str | None, is_server: bool
) -> Generator[None]:
    from opentelemetry.trace import SpanKind

    with tracer.start_as_current_span(
        name,
        _context(parent),
        SpanKind.SERVER if is_server else SpanKind.INTERNAL,
        _known(attributes),
        # An error's text may contain user data.
        record_exception=False,
        set_status_on_exception=False,
    ):
        try:
            yield
        except Exception as error:
            fail(type(error).__name__)
            raise


def note(attributes: Attributes) -> None:
    """Adds attributes to the current span. Those that are None are skipped."""
    if _tracer is not None:
        _current().set_attributes(_known(attributes))


def rename(name: str) -> None:
    """Renames the current span."""
    if _tracer is not None:
        _current().update_name(name)


def fail(kind: str) -> None:
    """Marks the current span as failed, with an error's code or name but never its text."""
    if _tracer is not None:
        from opentelemetry.trace import StatusCode

        _current().set_status(StatusCode.ERROR)
        _current().set_attribute("error.type", kind)


def record(name: str, attributes: Attributes, *, parent: str | None, began_at: float) -> None:
    """Records a span that began at an instant (seconds since 1970) and ends now."""
    if _tracer is not None:
        now = time.time()
        # The start may come from another machine's clock.
        began = min(began_at, now)
        _tracer.start_span(name, _context(parent), attributes=_known(attributes), start_time=_ns(began)).end(_ns(now))


class Phases:
    """Consecutive spans below one parent, for phases that report when they begin but not when they end. A context manager.

    Args:
        parent: the `traceparent` of all spans; None: record none.
    """

    def __init__(self, parent: str | None) -> None:
        self._parent, self._name = parent, ""
        self._span: Span | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def begins(self, name: str, began_at: float | None = None) -> None:
        """Ends the previous phase and begins a new one. If the phase is already running, it continues."""
        if _tracer is None or self._parent is None or name == self._name:
            return
        self._end()
        start = None if began_at is None else _ns(began_at)
        self._name, self._span = name, _tracer.start_span(name, _context(self._parent), start_time=start)

    def note(self, attributes: Attributes) -> None:
        """Adds attributes to the phase. The last value of each is kept."""
        if self._span is not None:
            self._span.set_attributes(_known(attributes))

    def _end(self) -> None:
        if self._span is not None:
            self._span.end()
        self._name, self._span = "", None


def current_traceparent() -> str | None:
    """The current span in W3C `traceparent` format, to continue it elsewhere; None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def current_trace() -> str | None:
    """The id of the current trace, in hex; None without one."""
    traceparent = current_traceparent()
    return traceparent.split("-")[1] if traceparent else None


def _start(service: str, at_once: bool) -> None:
    global _provider, _tracer  # noqa: PLW0603  # the process's
    from opentelemetry.exporter.otlp.proto.http import trace_exporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.util import re

    for module in (re, trace_exporter):
        logging.getLogger(module.__name__).addFilter(_hide_headers)
    own = {SERVICE_NAME: service, SERVICE_VERSION: version("tafdil")}
    resource = Resource.create(Resource(own).merge(OTELResourceDetector().detect()).attributes)
    exporter = trace_exporter.OTLPSpanExporter()
    # A full batch wakes the sending thread; with a batch of one, every span does.
    processor = BatchSpanProcessor(exporter, max_export_batch_size=1 if at_once else None)
    # Only `close` ends it: at exit the provider would wait indefinitely for its collector.
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("tafdil")


def _hide_headers(record: logging.LogRecord) -> bool:
    """Hides headers, which are secrets: OpenTelemetry logs those that it cannot parse or send."""
    if "header" in record.getMessage().lower():
        record.msg, record.args = "OTEL_EXPORTER_OTLP_HEADERS must be name=value, URL-encoded, separated by commas", ()
    return True


def _context(parent: str | None) -> "Context | None":
    if parent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _current() -> "Span":
    from opentelemetry.trace import get_current_span

    return get_current_span()


def _known(attributes: Attributes | None) -> dict[str, str | int | float]:
    return {name: value for name, value in (attributes or {}).items() if value is not None}


def _ns(instant: float) -> int:
    return int(instant * 1e9)
