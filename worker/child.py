"""The training process of one attempt: `python -m worker.child ATTEMPT_DIR REPORT_FD PARENT_PID`.

Reads `attempt.json`, trains with `trainer_core`, and reports JSON lines on the given file descriptor. A line `stop` on
standard input, or SIGTERM, asks for a checkpoint at the next step boundary; SIGINT ends it without one. It dies with its
supervisor: by the parent-death signal on Linux, by the end of standard input anywhere, and when the supervisor has been
silent until just before its lease could expire.
"""

import faulthandler
import hashlib
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs import tracing
from trainer_core import effect
from trainer_core.disk import is_disk_full
from trainer_core.effect import Verdict
from trainer_core.observer import Observer, Phase
from trainer_core.wording import Message, said, say
from worker.failures import EXIT_SUPERVISOR_SILENT, GPU_VARIABLE
from worker.parent_death import die_with_parent

_ALIVE_EVERY_S = 1.0
_SECOND_LOOK_S = 0.25
# CUDA's messages for a faulty device rather than a faulty program.
_GPU_LOST = (
    "fallen off the bus",
    "ECC error",
    "no CUDA-capable device",
    "unspecified launch failure",
    "devices unavailable",
)
# What CUDA and its libraries say themselves, where PyTorch's allocator was not asked.
_GPU_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


class Reports:
    """Writes reports, whole lines at a time, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._lock = threading.Lock()

    def send(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"type": kind, **fields}, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self._file.write(line.encode())


def listen(stop: threading.Event, silence_s: float) -> None:
    """Reads standard input in the background.

    A line `stop` sets the event. The end of input ends this process, and so does silence: the supervisor sends a line every
    second, and if it hangs another worker will get the job.
    """

    def read() -> None:
        buffer = b""
        while True:
            ready, _, _ = select.select([0], [], [], silence_s)
            # Check again: if this whole process was suspended, lines may have arrived meanwhile.
            if not ready and not select.select([0], [], [], _SECOND_LOOK_S)[0]:
                os._exit(EXIT_SUPERVISOR_SILENT)
            data = os.read(0, 2**12)
            if not data:
                os._exit(EXIT_SUPERVISOR_SILENT)
            *lines, buffer = (buffer + data).split(b"\n")
            if b"stop" in lines:
                stop.set()

    threading.Thread(target=read, daemon=True, name="supervisor-input").start()


def obey_signals(stop: threading.Event) -> None:
    """SIGTERM, which process managers send to every process, sets the event. Crashes write a traceback to the log."""
    main_process = os.getpid()

    def on_term(number: int, _: Any) -> None:
        if os.getpid() == main_process:
            stop.set()
        else:
            # A forked data-loader process has nothing to save.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, on_term)
    # Celery's pool processes ignore SIGINT, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class StartClock:
    """Measures the time between the start of the process and its first optimizer step, part by part."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._part, self._since = "process", time.monotonic() - _process_age_s()

    def begins(self, part: str) -> None:
        """Starts timing the next part."""
        now = time.monotonic()
        self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now

    def stopped(self) -> dict[str, float]:
        """Seconds by part."""
        self.begins("")
        return {part: round(seconds, 3) for part, seconds in self._seconds.items()}


def _process_age_s() -> float:
    """Seconds since the process started, from the kernel, to a hundredth; 0 if unavailable."""
    try:
        started_after_boot = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_after_boot / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0


# Names of phases in timings. The trainer is built after the model is loaded.
_PARTS = {"preparing": "data", "loading": "model", "reference": "reference", "training": "first_step"}


class Reporter(Observer):
    """Sends the run's progress as reports, and its phases as spans."""

    def __init__(self, reports: Reports, stop: threading.Event, clock: StartClock, spans: tracing.Phases) -> None:
        self._reports, self._stop, self._spans, self._told_at = reports, stop, spans, 0.0
        self._clock: StartClock | None = clock
        self._has_begun = False
        self.tokens: Callable[[], int] = lambda: 0
        """Tokens that went through the layers in this process."""

    def alive(self) -> None:
        if time.monotonic() - self._told_at >= _ALIVE_EVERY_S:
            self._told_at = time.monotonic()
            self._reports.send("alive")

    def phase(self, phase: Phase) -> None:
        if self._clock:
            self._clock.begins(_PARTS.get(phase, phase))
        self._spans.begins(phase)
        self._reports.send("phase", phase=phase)

    def progress(self, step: int, total_steps: int) -> None:
        if self._clock and self._has_begun:
            self._reports.send("first_step", step=step, seconds=self._clock.stopped(), cpu_s=round(time.process_time(), 3))
            self._clock = None
        # The first report says at which step training begins; the second reports its first step.
        self._has_begun = True
        tokens = self.tokens()
        self._spans.note({"tafdil.step": step, "tafdil.total_steps": total_steps, "tafdil.tokens": tokens})
        self._reports.send("progress", step=step, total_steps=total_steps, tokens=tokens)

    def metrics(self, step: int, values: dict[str, float | None]) -> None:
        self._reports.send("metrics", step=step, values=values)

    def data(self, report: dict[str, Any]) -> None:
        self._reports.send("data", report=report)

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        self._reports.send("samples", step=step, samples=samples)

    def warning(self, code: str, message: str) -> None:
        print(f"warning: {message}", flush=True)  # standard output is the job's log
        self._reports.send("warning", code=code, **said(message))

    def effect(self, verdict: Verdict, evidence: dict[str, Any]) -> None:
        print(f"effect: {effect.describe(verdict, evidence)}", flush=True)
        self._reports.send("effect", effect=verdict, evidence=evidence)

    def review(self, found: dict[str, Any]) -> None:
        self._reports.send("review", review=found)

    def checkpoint(self, step: int, path: Path) -> None:
        self._reports.send("checkpoint", step=step)

    def should_stop(self) -> bool:
        return self._stop.is_set()


def preload() -> None:
    """Work that the fork server does once, so that the runs it forks need not."""
    import jobs.spec  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from trainer_core import preloading

    preloading.preload()


def train(plan: dict[str, Any], reports: Reports, stop: threading.Event) -> None:
    """Trains as planned and reports the outcome."""
    with tracing.Phases(os.environ.get(tracing.VARIABLE)) as spans:
        spans.begins("starting", began_at=time.time() - _process_age_s())
        _train(plan, reports, stop, spans)


def _train(plan: dict[str, Any], reports: Reports, stop: threading.Event, spans: tracing.Phases) -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    clock = StartClock()
    clock.begins("imports")
    import torch

    from jobs.spec import library_config
    from trainer_core.checkpoints import verified_step
    from trainer_core.preference_trainer import PreferenceTrainer

    keep_log_readable()
    wanted = os.environ.get(GPU_VARIABLE)
    if wanted and not torch.cuda.is_available():
        # Fail rather than fall back to the CPU: hours would become days.
        raise RuntimeError(say("gpu_unseen", gpu=wanted))

    places = plan["places"]
    config = library_config(plan["spec"], places)
    reporter = Reporter(reports, stop, clock, spans)
    trainer = PreferenceTrainer(config, locate=plan["models"].__getitem__, observer=reporter)
    reporter.tokens = lambda: trainer.tokens_computed
    checkpoint = newest_checkpoint(plan)
    if checkpoint:
        reports.send("checkpoint_loaded", step=verified_step(checkpoint), job_id=checkpoint.parents[2].name)
    elif plan["start_from"]:
        reporter.warning("checkpoint_gone", say("checkpoint_gone"))
    trainer.train(resume_from_checkpoint=checkpoint)
    paths = {name: places[f"{name}_path"] for name in ("dataset", "eval_dataset")}
    data: dict[str, Any] = {f"{name}_sha256": sha256(Path(path)) for name, path in paths.items() if path}
    if places["datasets"]:
        data["datasets_sha256"] = [sha256(Path(each["path"])) for each in places["datasets"]]
    metadata = Path(places["output_dir"]) / f"{trainer.preference_method}_metadata.json"
    saved = json.loads(metadata.read_text(encoding="utf-8"))
    files = {name: sha256(Path(places["output_dir"]) / name) for name in result_files(Path(places["output_dir"]))}
    reports.send("finished", metadata={**saved, **data, "attempt": plan["attempt"]}, files=files)


def result_files(output: Path) -> list[str]:
    """The files of a trained model: everything except its checkpoints."""
    paths = (path.relative_to(output) for path in sorted(output.rglob("*")) if path.is_file())
    return [path.as_posix() for path in paths if not path.parts[0].startswith(("checkpoint-", ".", "logs", "runs"))]


def newest_checkpoint(plan: dict[str, Any]) -> Path | None:
    """The newest complete checkpoint of this job's attempts, or else of the job that it starts from."""
    from trainer_core.checkpoints import newest_verified

    for run in filter(None, (plan["run_dir"], plan["start_from"])):
        found = newest_verified(sorted(Path(run).glob("attempt-*/output")))
        if found:
            return found
    return None


def keep_log_readable() -> None:
    """Keeps progress bars, advice for library authors, and paths on this machine out of the job's log."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    # The log is for whoever submitted the job, who has no use for this machine's library paths.
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"
    logging.disable_progress_bar()
    disable_progress_bars()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(error: Exception) -> dict[str, Any]:
    """The stored form of the error that ended the run."""
    from trainer_core.errors import TafdilError, error_dict

    if isinstance(error, TafdilError):
        return error.as_dict()
    if type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in _GPU_FULL):
        code, sentence = ("gpu_busy", "gpu_taken") if _is_gpu_taken() else ("oom_gpu", "gpu_out_of_memory")
        return error_dict(code, say(sentence, problem=_first_line(error)))
    if isinstance(error, MemoryError):
        return error_dict("oom_host", say("run_out_of_memory"))
    if is_disk_full(error):
        return error_dict("disk_full", say("worker_disk_full"))
    if any(text in str(error) for text in _GPU_LOST):
        known = error.args[0] if isinstance(error.args[0], Message) else None
        return error_dict("gpu_lost", known or say("gpu_failed", problem=_first_line(error)))
    return error_dict("internal", say("run_broke", kind=type(error).__name__, problem=str(error)))


def _is_gpu_taken() -> bool:
    """Whether other processes hold most of the GPU's memory, so that a run without them may have room."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        # There was not even room to begin, so this process holds nothing.
        return True
    return total - free - torch.cuda.memory_reserved() > total / 2


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def main(train: Callable[[dict[str, Any], Reports, threading.Event], None] = train) -> int:
    """Runs the attempt and reports its outcome. Returns the exit code."""
    folder, descriptor, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    stop = threading.Event()
    plan = json.loads((folder / "attempt.json").read_text(encoding="utf-8"))
    listen(stop, plan["silence_s"])
    obey_signals(stop)
    reports = Reports(descriptor)
    # Standard output is the job's log, and errors of a missing collector do not belong there; the supervisor logs them.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    if tracing.VARIABLE in os.environ:
        tracing.configure("tafdil-trainer", at_once=True)
    try:
        train(plan, reports, stop)
    except KeyboardInterrupt:
        print("interrupted: the job was cancelled, or its worker shut down before there was anything to save", flush=True)
        return 130
    except Exception as error:
        if type(error).__name__ == "Stopped":
            reports.send("stopped")
            return 0
        reports.send("failed", error=describe(error))
        # The log's own disk may be the full one.
        with suppress(OSError):
            traceback.print_exc()
        return 1
    finally:
        tracing.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
