"""A collector of traces in a thread of the test's process: it keeps what arrives, or stands still, or is gone."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from tests.stack import until


@dataclass(frozen=True)
class Seen:
    """A span as it arrived; ids are hex."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    is_error: bool
    began_ns: int
    ended_ns: int


class Collector:
    """OTLP over HTTP on a port of its own.

    Attributes:
        bodies: everything that was sent, as it was sent.
        headers: of each request.
        spans: in the order of their arrival.
        asked: requests that came while it stood still.
    """

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.spans: list[Seen] = []
        self.asked = 0
        self._answers = threading.Event()
        self._answers.set()
        self._server = _listen(self, 0)
        self._port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self._port}"

    @contextmanager
    def standing_still(self) -> Generator[None]:
        """Takes requests and does not answer them."""
        self.asked = 0
        self._answers.clear()
        try:
            yield
        finally:
            self._answers.set()

    @contextmanager
    def gone(self) -> Generator[None]:
        """Refuses connections."""
        self.close()
        try:
            yield
        finally:
            self._server = _listen(self, self._port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        if not self._answers.is_set():
            self.asked += 1
        self._answers.wait()
        self.bodies.append(body)
        self.headers.append(headers)
        for of_process in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(of_process.resource.attributes)["service.name"]
            for of_scope in of_process.scope_spans:
                self.spans += [_seen(service, span) for span in of_scope.spans]

    def of_trace(self, trace: str, *names: str) -> list[Seen]:
        """The spans of a trace in the order of their beginnings, once there are some of each name."""

        def look() -> list[Seen]:
            found = sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.began_ns)
            return found if set(names) <= {span.name for span in found} else []

        return until(look)


def _listen(collector: Collector, port: int) -> ThreadingHTTPServer:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server wants
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["content-length"])), dict(self.headers))
            reply = ExportTraceServiceResponse().SerializeToString()
            try:
                self.send_response(200)
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)
            except OSError:
                # Who asked has given up.
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def _seen(service: str, span: Any) -> Seen:
    return Seen(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _values(span.attributes),
        span.status.code == span.status.STATUS_CODE_ERROR,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
