"""One attempt of a job: claim it, start its training process, watch it, and end it.

Knows no torch. The training is a process of its own (`worker.child`), so that its end frees the device for certain.
"""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from jobs.database import Database
from jobs.errors import NotFound
from jobs.places import attempt_dir, data_file, dataset_file, find_model
from jobs.queue import JobQueue
from jobs.records import JobRecord
from jobs.repository import jobs
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Cause
from trainer_core.errors import DataInvalid, TafdilError, error_dict
from worker.reporter import AttemptReporter

log = logging.getLogger(__name__)

_TICK_S = 0.2
_LOG_TAIL_LINES = 20
# The training process needs neither; what it does not have it cannot leak into a log or an artifact.
_SECRETS = ("TAFDIL_DATABASE_URL", "TAFDIL_REDIS_URL")


class Supervisor:
    """Runs one job at a time.

    Args:
        worker: this worker's name in the job's record.
        is_draining: whether the worker is shutting down.
    """

    def __init__(
        self, database: Database, queue: JobQueue, settings: Settings, worker: str, is_draining: Callable[[], bool]
    ) -> None:
        self._database, self._queue, self._settings = database, queue, settings
        self._worker, self._is_draining = worker, is_draining

    def run_next(self) -> bool:
        """Claims the best queued job and runs one attempt of it. False: none is queued."""
        with self._database.transaction() as session:
            job = jobs.claim_next(session, self._worker, self._settings.lease_s)
        if job is None:
            return False
        assert job.lease_token is not None
        fence = Fence(job.id, job.attempt, job.lease_token)
        log.info("job %s attempt %d: claimed", job.id, job.attempt)
        self._queue.nudge(job.id)
        Attempt(self, job, fence).run()
        self._queue.nudge(job.id)
        return True

    def prepare(self, job: JobRecord) -> Path:
        """The attempt's directory, with what the training process reads. Raises `TafdilError`."""
        spec = job.resolved_spec
        settings = self._settings
        # A job that was stored before a field existed does without it.
        named = [spec.get(field) for field in ("model_name", "ref_model_name", "adapter_name")]
        names = {name for name in named if name}
        folder = attempt_dir(settings, job.id, job.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        plan = {
            "job_id": job.id,
            "attempt": job.attempt,
            "spec": spec,
            "dataset": str(self._data(spec, "dataset")),
            "eval_dataset": str(self._data(spec, "eval_dataset") or "") or None,
            "models": {name: find_model(settings, name) for name in names},
            "output_dir": str(folder / "output"),
            "run_dir": str(folder.parent),
        }
        (folder / "attempt.json").write_text(json.dumps(plan, ensure_ascii=False), encoding="utf-8")
        return folder

    def _data(self, spec: dict[str, Any], field: str) -> Path | None:
        if spec[f"{field}_id"]:
            try:
                return dataset_file(self._settings, spec[f"{field}_id"])
            except NotFound as error:
                raise DataInvalid(error.message) from error
        path = spec[f"{field}_path"]
        return data_file(self._settings, path, f"{field}_path") if path else None


class Attempt:
    """One training process and what becomes of it."""

    def __init__(self, supervisor: Supervisor, job: JobRecord, fence: Fence) -> None:
        self._supervisor, self._job, self._fence = supervisor, job, fence
        self._settings = supervisor._settings
        self._database = supervisor._database
        self._reporter = AttemptReporter(supervisor._database, supervisor._queue, fence)
        self._is_cancelled = False
        self._is_stopping = False
        self._is_fenced = False
        self._kill_at: float | None = None

    def run(self) -> None:
        """Runs to the end of the attempt, whatever that is."""
        try:
            folder = self._supervisor.prepare(self._job)
        except TafdilError as error:
            self._finish(Cause.FAIL, {"error": error.as_dict()})
            return
        process, reports = self._start(folder)
        try:
            with reports:
                self._watch(process, reports)
        finally:
            # Whatever the process left behind in its session goes with it. After an error here nobody would watch the
            # training, so it ends too, and the lease brings the job back.
            _signal_group(process.pid, signal.SIGKILL)
        self._end(process.wait(), folder)

    def _start(self, folder: Path) -> tuple["subprocess.Popen[bytes]", BinaryIO]:
        """The training process, and the end of the pipe that its reports come from."""
        report_read, report_write = os.pipe()
        with (folder / "log.txt").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker.child", str(folder), str(report_write), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(report_write,),
                start_new_session=True,
                env=self._environment(),
            )
        os.close(report_write)
        return process, os.fdopen(report_read, "rb", buffering=0)

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        if not self._settings.allow_hub:
            environment["HF_HUB_OFFLINE"] = "1"
        return {**environment, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}

    def _watch(self, process: "subprocess.Popen[bytes]", reports: BinaryIO) -> None:
        """Until the process ends: its reports, the lease, cancels and the worker's shutdown."""
        renew_at = cancel_poll_at = 0.0
        buffer = b""
        while True:
            ready, _, _ = select.select([reports], [], [], _TICK_S)
            data = os.read(reports.fileno(), 2**16) if ready else None
            if data:
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._reporter.receive(json.loads(line))
            self._reporter.flush()
            now = time.monotonic()
            if now >= renew_at:
                renew_at = now + self._settings.heartbeat_s
                self._renew()
            if now >= cancel_poll_at:
                cancel_poll_at = now + self._settings.cancel_poll_s
                self._look_for_cancel(process)
            if self._supervisor._is_draining() and not self._is_stopping and not self._is_cancelled:
                self._stop(process)
            if self._kill_at is not None and now >= self._kill_at:
                _signal_group(process.pid, signal.SIGKILL)
                self._kill_at = None
            if data == b"" or (data is None and process.poll() is not None):
                break
        # The end of the reports comes before the end of the process by a moment; a training that hangs there is killed.
        try:
            process.wait(self._settings.drain_grace_s)
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
        self._reporter.flush(everything=True)

    def _renew(self) -> None:
        def renew(session: Any) -> bool:
            return jobs.renew(session, self._fence, self._settings.lease_s)

        if self._reporter.try_write(renew) is False:
            self._is_fenced = True

    def _look_for_cancel(self, process: "subprocess.Popen[bytes]") -> None:
        if self._is_cancelled:
            return
        answer = self._reporter.try_write(lambda session: (jobs.is_cancel_requested(session, self._fence),))
        requested = answer[0] if isinstance(answer, tuple) else False
        self._is_fenced = self._is_fenced or requested is None
        if requested or self._is_fenced:
            self._is_cancelled = True
            _signal_group(process.pid, signal.SIGTERM)
            self._kill_at = time.monotonic() + self._settings.term_grace_s

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        """Asks the training to checkpoint at its next step boundary and leave."""
        self._is_stopping = True
        self._kill_at = time.monotonic() + self._settings.drain_grace_s
        assert process.stdin is not None
        try:
            process.stdin.write(b"stop\n")
            process.stdin.flush()
        except BrokenPipeError:
            log.info("job %s: the training has ended already", self._job.id)

    def _end(self, exit_code: int, folder: Path) -> None:
        last = self._reporter.last
        log.info("job %s attempt %d: exit code %d, %s", self._job.id, self._job.attempt, exit_code, last.get("type"))
        if self._is_fenced:
            log.warning("job %s attempt %d is not the job's any more", self._job.id, self._job.attempt)
        elif last.get("type") == "finished":
            artifact = (folder / "output").relative_to(self._settings.runs_dir.resolve())
            self._finish(Cause.FINISH, {"artifact_path": str(artifact), "metadata_": last["metadata"]})
        elif self._is_cancelled:
            # The process and its group are gone by now, and what they held with them.
            self._finish(Cause.CANCEL, {"error": error_dict("cancelled", "cancelled while running")})
        elif last.get("type") == "failed":
            self._finish(Cause.FAIL, {"error": {**last["error"], "log_tail": _tail(folder / "log.txt")}})
        elif self._is_stopping:
            self._finish(Cause.PREEMPT, {"published_at": None})
        elif exit_code < 0:
            name = signal.Signals(-exit_code).name
            log.warning("job %s attempt %d: the training was killed by %s", self._job.id, self._job.attempt, name)
            with self._database.transaction() as session:
                jobs.lose(session, self._fence, self._settings.max_losses)
        else:
            error = error_dict("internal", f"the training ended with exit code {exit_code} and no result")
            self._finish(Cause.FAIL, {"error": {**error, "log_tail": _tail(folder / "log.txt")}})

    def _finish(self, cause: Cause, values: dict[str, Any]) -> None:
        error = values.get("error")
        data = {"error": {name: error[name] for name in ("code", "message")}} if error else {}
        with self._database.transaction() as session:
            jobs.finish(session, self._fence, cause, values, data)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signals the training's own process group; the child leads it from its start."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        log.debug("process group %d is gone", pid)


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        return file.read().decode("utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
