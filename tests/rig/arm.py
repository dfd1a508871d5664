"""An arm of the GPU check that forks the processes that it starts: `python -m tests.rig.arm`, as `benchmarks.gpu.arm`.

Its service would import everything six times, and the training libraries twice; its resumed runs would import those as well.
"""

import subprocess
import tempfile
import threading
from types import SimpleNamespace
from typing import Any

from benchmarks.gpu import arm, resume, service
from tests import forking
from tests.stack import ForkedStack

# A forking process answers one request at a time.
_FORKING = threading.Lock()


def run(command: list[str], *, env: dict[str, str], timeout: float, **_: Any) -> "subprocess.CompletedProcess[str]":
    """As `subprocess.run`, with one text for both outputs."""
    with tempfile.TemporaryFile() as output:
        with _FORKING:
            process = forking.fork(command, env, output, trains=True)
        code = process.wait(timeout)
        output.seek(0)
        text = output.read().decode()
    return subprocess.CompletedProcess(command, code, text, text)


def main() -> None:
    forking.copy_itself()
    service.LocalStack = ForkedStack  # type: ignore[misc]
    resume.subprocess = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)  # type: ignore[assignment]
    arm.main()


if __name__ == "__main__":
    main()
