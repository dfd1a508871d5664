"""Traces that nobody asked for, that cannot be had, or whose variables are wrong: in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Nothing listens there.
ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2"}


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that runs the code and ends well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env={**kept, **environment}
    )


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_SERVICE_NAME": "tafdil"},
        {**ON, "OTEL_SDK_DISABLED": "true"},
        {**ON, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_off_loads_nothing_and_does_nothing(environment: dict[str, str]) -> None:
    code = """
import sys, threading
from api.app import create_app
from jobs import tracing
import worker.child, worker.dispatcher, worker.supervisor, worker.tasks
app = create_app()
assert not tracing.configure("test") and not tracing.is_on()
with tracing.span("a", {"b": 1}, parent="c"), tracing.Phases("c") as phases:
    phases.begins("d", began_at=1.0)
    phases.note({"e": 1})
    tracing.note({"f": 1})
    tracing.rename("g")
    tracing.fail("h")
    tracing.record("i", {}, parent=None, began_at=1.0)
    assert tracing.current_traceparent() is tracing.current_trace() is None
tracing.close()
assert "HttpTraces" not in [each.cls.__name__ for each in app.user_middleware]
# FastAPI loads the API and redis the SDK's metrics where they are installed, and neither does anything with them.
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))], end=" ")
print(threading.active_count())
"""
    assert run(code, environment).stdout == "[] 1\n"


def test_traces_that_are_not_installed_are_told_with_the_fix() -> None:
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from api.app import create_app
from jobs import tracing
create_app()
with tracing.span("a"):
    print(tracing.is_on())
"""
    ran = run(code, ON)
    assert ran.stdout == "False\n"
    assert "ERROR jobs.tracing: an OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed" in ran.stderr
    assert "pip install 'tafdil[tracing]'" in ran.stderr


@pytest.mark.parametrize("headers", ["hush-hush", "key=hush;hush", "key=hush%0Ahush", "a=b,key=hush/\\hush"])
def test_headers_that_cannot_be_sent_are_not_shown(headers: str) -> None:
    code = """
from jobs import logs, tracing
logs.configure()
print(tracing.configure("test"))
with tracing.span("a"):
    pass
tracing.close()
"""
    ran = run(code, {**ON, "OTEL_EXPORTER_OTLP_HEADERS": headers, "TAFDIL_LOG_LEVEL": "DEBUG"})
    assert ran.stdout == "True\n"
    assert "hush" not in ran.stderr
    assert "OTEL_EXPORTER_OTLP_HEADERS must be" in ran.stderr or "Failed to export" in ran.stderr


def test_variables_that_opentelemetry_refuses_stop_nothing() -> None:
    code = "from jobs import logs, tracing; logs.configure(); print(tracing.configure('test'))"
    ran = run(code, {**ON, "OTEL_BSP_MAX_QUEUE_SIZE": "-1"})
    assert ran.stdout == "False\n"
    assert "nothing is traced, because OpenTelemetry does not accept its variables: ValueError" in ran.stderr
