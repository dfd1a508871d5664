"""Traces by OpenTelemetry, from the request to the trainer. Its own `OTEL_` variables turn them on and say where they go.

Off, nothing here loads OpenTelemetry or does anything. On, spans are sent by a thread of their own, so a collector that is
slow or away costs spans, never a request or a training. The provider is not made the global one: what libraries would tell
through it is not ours to answer for.
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
"""Where a process finds the span that started it."""
Attributes = Mapping[str, str | int | float | None]

# For so long a process that ends waits for a collector.
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
    """Turns traces on in this process if the environment asks for them; returns whether they are. Never raises.

    Call it after a fork, not before: the thread that sends spans does not outlive one.

    Args:
        service: the name of this process, unless the environment gives one.
        at_once: sends each span as it ends, for processes with few of them that may be killed.
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
            # Of its text nothing is known, and a header may be in it.
            log.error("nothing is traced, for OpenTelemetry does not accept its variables: %s", type(error).__name__)
    return is_on()


def close() -> None:
    """Sends what waits, for a second at most, and turns traces off."""
    global _provider, _tracer  # noqa: PLW0603  # the process's
    if _provider is not None:
        # Its own limits are 30 s and the exporter's time; whatever this thread still does then ends with the process.
        ending = threading.Thread(target=_provider.shutdown, daemon=True, name="traces-end")
        ending.start()
        ending.join(_CLOSE_S)
    _provider = _tracer = None


def span(
    name: str, attributes: Attributes | None = None, *, parent: str | None = None, is_server: bool = False
) -> AbstractContextManager[None]:
    """A span that lasts as long as the block and is the current one in it. An error that leaves the block marks it failed.

    Args:
        parent: the `traceparent` that it continues; None: the current span, or else a new trace.
        is_server: whether it answers a request.
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
        # The text of an error may be a user's.
        record_exception=False,
        set_status_on_exception=False,
    ):
        try:
            yield
        except Exception as error:
            fail(type(error).__name__)
            raise


def note(attributes: Attributes) -> None:
    """Adds to the current span what became known meanwhile; an attribute that is None says nothing."""
    if _tracer is not None:
        _current().set_attributes(_known(attributes))


def rename(name: str) -> None:
    """Gives the current span a better name."""
    if _tracer is not None:
        _current().update_name(name)


def fail(kind: str) -> None:
    """Marks the current span as failed, by a code or the name of an error, never its text."""
    if _tracer is not None:
        from opentelemetry.trace import StatusCode

        _current().set_status(StatusCode.ERROR)
        _current().set_attribute("error.type", kind)


def record(name: str, attributes: Attributes, *, parent: str | None, began_at: float) -> None:
    """A span of something that began at an instant (seconds since 1970) and is over now."""
    if _tracer is not None:
        now = time.time()
        # The clock that told the beginning may be another machine's.
        began = min(began_at, now)
        _tracer.start_span(name, _context(parent), attributes=_known(attributes), start_time=_ns(began)).end(_ns(now))


class Phases:
    """Spans one after another below one parent, of what tells when it begins and not when it ends. A context manager.

    Args:
        parent: the `traceparent` of all of them; None: there are no spans.
    """

    def __init__(self, parent: str | None) -> None:
        self._parent, self._name = parent, ""
        self._span: Span | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def begins(self, name: str, began_at: float | None = None) -> None:
        """Ends the phase before. One that begins again while it lasts goes on."""
        if _tracer is None or self._parent is None or name == self._name:
            return
        self._end()
        start = None if began_at is None else _ns(began_at)
        self._name, self._span = name, _tracer.start_span(name, _context(self._parent), start_time=start)

    def note(self, attributes: Attributes) -> None:
        """Adds to the phase; the last value of an attribute stays."""
        if self._span is not None:
            self._span.set_attributes(_known(attributes))

    def _end(self) -> None:
        if self._span is not None:
            self._span.end()
        self._name, self._span = "", None


def current_traceparent() -> str | None:
    """The current span as the W3C writes it, for whoever continues it elsewhere; None without one."""
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
    # A full batch wakes the thread that sends: of one span, each does.
    processor = BatchSpanProcessor(exporter, max_export_batch_size=1 if at_once else None)
    # Ended by `close` alone: at exit the provider would wait for as long as its collector likes.
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("tafdil")


def _hide_headers(record: logging.LogRecord) -> bool:
    """OpenTelemetry shows headers that it cannot read or send. They are secrets."""
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
