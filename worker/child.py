"""The training process of one attempt: `python -m worker.child ATTEMPT_DIR REPORT_FD PARENT_PID`.

Reads `attempt.json`, trains with `trainer_core`, and reports JSON lines on the given file descriptor. A line `stop` on
standard input asks for a checkpoint at the next step boundary. It dies with its supervisor: by the parent-death signal on
Linux, and by the end of standard input anywhere.
"""

import ctypes
import errno
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"


def die_with_parent(parent: int) -> None:
    """Asks the kernel to end this process when its parent ends; leaves at once if that happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):
            # When memory runs out the kernel should take the training, not its supervisor.
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    if os.getppid() != parent:
        os._exit(1)


class Reports:
    """Writes reports, whole lines at a time, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._lock = threading.Lock()

    def send(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"type": kind, **fields}, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self._file.write(line.encode())


def listen(stop: threading.Event) -> None:
    """Reads standard input in the background: `stop` sets the event, the end of input ends this process."""

    def read() -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                stop.set()
        os._exit(1)

    threading.Thread(target=read, daemon=True, name="supervisor-input").start()


def train(plan: dict[str, Any], reports: Reports, stop: threading.Event) -> None:
    """Trains as the plan says and reports the end."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from jobs.spec import library_config
    from trainer_core.checkpoints import newest_verified, verified_step
    from trainer_core.observer import Observer, Phase
    from trainer_core.preference_trainer import PreferenceTrainer

    keep_log_readable()

    class Reporter(Observer):
        def phase(self, phase: Phase) -> None:
            reports.send("phase", phase=phase)

        def progress(self, step: int, total_steps: int) -> None:
            reports.send("progress", step=step, total_steps=total_steps)

        def metrics(self, step: int, values: dict[str, float | None]) -> None:
            reports.send("metrics", step=step, values=values)

        def data(self, report: dict[str, Any]) -> None:
            reports.send("data", report=report)

        def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
            reports.send("samples", step=step, samples=samples)

        def warning(self, code: str, message: str) -> None:
            print(f"warning: {message}", flush=True)  # standard output is the job's log
            reports.send("warning", code=code, message=message)

        def checkpoint(self, step: int, path: Path) -> None:
            reports.send("checkpoint", step=step)

        def should_stop(self) -> bool:
            return stop.is_set()

    dataset = Path(plan["dataset"])
    eval_dataset = Path(plan["eval_dataset"]) if plan["eval_dataset"] else None
    config = library_config(plan["spec"], dataset, eval_dataset, Path(plan["output_dir"]))
    trainer = PreferenceTrainer(config, locate=plan["models"].__getitem__, observer=Reporter())
    checkpoint = newest_verified(sorted(Path(plan["run_dir"]).glob("attempt-*/output")))
    if checkpoint:
        reports.send("resumed", step=verified_step(checkpoint))
    trainer.train(resume_from_checkpoint=checkpoint)
    data = {"dataset_sha256": sha256(dataset)} | ({"eval_dataset_sha256": sha256(eval_dataset)} if eval_dataset else {})
    saved = json.loads((Path(plan["output_dir"]) / f"{trainer.preference_method}_metadata.json").read_text(encoding="utf-8"))
    reports.send("finished", metadata={**saved, **data, "attempt": plan["attempt"]})


def keep_log_readable() -> None:
    """Keeps progress bars, and advice to the authors of libraries, out of the job's log."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.disable_progress_bar()
    disable_progress_bars()


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(error: Exception) -> dict[str, Any]:
    """The stored form of whatever ended the training."""
    from trainer_core.errors import TafdilError, error_dict

    if isinstance(error, TafdilError):
        return error.as_dict()
    if type(error).__name__ == "OutOfMemoryError":
        return error_dict("oom_gpu", str(error).splitlines()[0])
    if isinstance(error, MemoryError):
        return error_dict("oom_host", "the training ran out of memory")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return error_dict("disk_full", "the disk is full")
    return error_dict("internal", f"{type(error).__name__}: {error}")


def main() -> int:
    folder, descriptor, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    stop = threading.Event()
    listen(stop)
    reports = Reports(descriptor)
    plan = json.loads((folder / "attempt.json").read_text(encoding="utf-8"))
    try:
        train(plan, reports, stop)
    except Exception as error:
        if type(error).__name__ == "Stopped":
            reports.send("stopped")
            return 0
        traceback.print_exc()
        reports.send("failed", error=describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
