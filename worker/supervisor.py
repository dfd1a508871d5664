"""Runs one attempt of a job: claims it, starts its training process, watches it, and ends it.

Does not import torch. Training has its own process (`worker.child`), so that its end reliably frees the device.
"""

import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from jobs import logs, quotas, tracing
from jobs.artifacts import ArtifactFile, ArtifactKind, attempts_here, newest_checkpoint
from jobs.database import Database
from jobs.places import attempt_dir, data_places, model_places, run_dir, without_places
from jobs.queue import JobQueue
from jobs.records import JobRecord
from jobs.repository import artifacts, attempts, events, jobs, metrics
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Cause, Phase, Request
from jobs.storage import Storage
from trainer_core.disk import is_disk_full
from trainer_core.errors import TafdilError, error_dict
from trainer_core.wording import restored, say
from worker import gpu, publisher
from worker.failures import GPU_VARIABLE, LOSSES, OomWatch, is_most_of, memory_limit_bytes, told_by_exit
from worker.gpu import Gpu, GpuLock
from worker.reporter import AttemptReporter
from worker.training_process import TrainingProcess
from worker.warm_start import ColdReason, ForkServer, needs_bitsandbytes

log = logging.getLogger(__name__)

TRAINER = (sys.executable, "-m", "worker.child")
_TICK_S = 0.2
# How long to keep offering a trained model to a store that fails.
_STORE_PATIENCE_S = 600.0
_STORE_RETRY_S = 5.0
_ABORT_GRACE_S = 5.0
# How long to wait for a killed process before leaving it to the kernel.
_UNKILLABLE_S = 60.0
_LOG_TAIL_LINES = 20
# Phases with nothing to save, so a run that is asked to stop can be ended immediately.
_NOTHING_TO_SAVE = (Phase.PREPARING, Phase.LOADING)
# Phases that report every step; the others may be silent for a long time.
_TELLING = (Phase.TRAINING, Phase.EVALUATING)


class Supervisor:
    """Runs one job at a time.

    Args:
        worker: this worker's name, as shown in attempts.
        is_draining: whether the worker is shutting down.
        trainer: the command of the training process.
        fork_server: forks training processes where possible; without it, each imports everything itself.
    """

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        settings: Settings,
        *,
        worker: str,
        is_draining: Callable[[], bool],
        trainer: Sequence[str] = TRAINER,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.database, self.queue, self.settings = database, queue, settings
        self.is_draining, self.trainer, self.fork_server = is_draining, trainer, fork_server
        self._worker = worker

    def run_next(self) -> bool:
        """Claims the next queued job and runs one attempt. False: none is queued, or the GPU is in use or unknown."""
        try:
            device = gpu.visible_gpu()
        except gpu.GpuUnknown as error:
            log.error("nothing is claimed: %s", error)
            return False
        lock = GpuLock.take(device, self.settings.gpu_lock_dir) if device else None
        if device and lock is None:
            log.warning("%s (%s) is in use by another worker of this host; nothing is claimed", device.uuid, device.name)
            return False
        with lock or nullcontext():
            job = self._claim(device)
            if job is None:
                return False
            with (
                logs.about(job=job.id, attempt=job.attempt),
                tracing.span("attempt", _traced(job), parent=job.traceparent),
            ):
                Attempt(self, job, device, lock).run()
        return True

    def _claim(self, device: Gpu | None) -> JobRecord | None:
        with self.database.transaction() as session:
            job = jobs.claim_next(
                session,
                self._worker,
                self.settings.lease_s,
                device.uuid if device else None,
                self.settings.gpu_class,
                without=quotas.spent_tenants(session, self.settings),
            )
            queued_at = events.queued_at(session, job) if job is not None and tracing.is_on() else 0.0
        if job is not None:
            tracing.record("queued", _traced(job), parent=job.traceparent, began_at=queued_at)
            log.info("job %s attempt %d: claimed", job.id, job.attempt)
            self.queue.nudge(job.id)
        return job

    def prepare(self, job: JobRecord) -> Path:
        """Creates the attempt's directory with the training process's input. Raises `TafdilError`."""
        spec = job.resolved_spec
        settings = self.settings
        folder = attempt_dir(settings, job.id, job.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        for job_id in filter(None, (job.id, job.start_from)):
            self._fetch_checkpoint(job_id)
        plan = {
            "job_id": job.id,
            "attempt": job.attempt,
            "spec": spec,
            "places": {**data_places(settings, spec), "output_dir": str(folder / "output")},
            "models": model_places(settings, spec),
            "run_dir": str(folder.parent),
            "start_from": str(run_dir(settings, job.start_from)) if job.start_from else None,
            "silence_s": settings.silence_s,
        }
        (folder / "attempt.json").write_text(json.dumps(plan, ensure_ascii=False), encoding="utf-8")
        return folder

    def _fetch_checkpoint(self, job_id: str) -> None:
        """Fetches a job's newest checkpoint if only the store has it."""
        if self.settings.artifacts_url is None:
            return
        with self.database.reading() as session:
            files = [file for file in artifacts.of_job(session, job_id) if file.kind == ArtifactKind.CHECKPOINT]
        Storage(self.settings).fetch(job_id, newest_checkpoint(files))


class Attempt:
    """One training process, from start to outcome."""

    def __init__(self, supervisor: Supervisor, job: JobRecord, device: Gpu | None, lock: GpuLock | None) -> None:
        assert job.lease_token is not None
        self._supervisor, self._job, self._device, self._lock = supervisor, job, device, lock
        self._settings = supervisor.settings
        self._fence = Fence(job.id, job.attempt, job.lease_token)
        self._claimed_at = time.monotonic()
        self._reporter = AttemptReporter(
            supervisor.database, supervisor.queue, self._settings, self._fence, self._memory_bytes
        )
        self._process: TrainingProcess | None = None
        self._is_cancelled = False
        self._is_stopping = False
        self._is_hung = False
        self._kill_at: float | None = None
        self._drain_ends_at: float | None = None
        self._oom_watch = OomWatch()
        self._left: list[ArtifactFile] = []
        self._not_stored: str | None = None
        self._dropped: list[str] = []

    def run(self) -> None:
        """Runs the attempt to its end, whatever the outcome."""
        self._reporter.start()
        try:
            self._run()
        finally:
            # Whatever went wrong, the lease must not be renewed for a run that nobody supervises.
            self._reporter.stop()

    def _run(self) -> None:
        memory_before = gpu.memory_used_bytes(self._device) if self._device else None
        lock = self._lock.descriptor if self._lock else None
        try:
            folder = self._supervisor.prepare(self._job)
            process = TrainingProcess(
                self._supervisor.trainer,
                folder,
                self._environment(),
                lock,
                server=self._fork_server(),
                give_up=self._is_asked_to_end,
            )
            self._process = process
        except (TafdilError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                # This worker cannot start training processes; another may.
                raise
            if isinstance(error, TafdilError):
                known = error.as_dict()
            elif is_disk_full(error):
                known = error_dict("disk_full", say("worker_disk_full"))
            else:
                known = error_dict("internal", say("run_not_started", problem=str(error)))
            self._reporter.close(self._gives_up)
            self._fail(known, {}, attempt_dir(self._settings, self._job.id, self._job.attempt))
            return
        try:
            self._watch(process)
        finally:
            # The process's descendants end with it. After an error here nobody would supervise the run, so it ends too,
            # and the job is requeued when the lease expires.
            exit_code, left = process.end()
        was_oom_killed = self._oom_watch.has_risen()
        if exit_code is None:
            # Stuck in the kernel. Its results do not count: the lease expires, which requeues the job, and its GPU stays
            # locked while it lives.
            log.error("job %s attempt %d: process %d cannot be killed", self._job.id, self._job.attempt, process.pid)
            return
        report = {
            "name": self._device.name if self._device else "cpu",
            "memory_before_bytes": memory_before,
            "memory_after_bytes": gpu.memory_after_bytes(self._device, memory_before) if self._device else None,
            "processes_left": left,
        }
        self._reporter.flush(self._gives_up)
        if not self._reporter.is_fenced:
            # The lease is renewed meanwhile, because a store may be slow.
            self._left = self._leave(folder, self._reporter.last)
        self._reporter.close(self._gives_up)
        self._end(exit_code, was_oom_killed, folder, report)

    def _memory_bytes(self) -> int | None:
        if self._device:
            return gpu.memory_used_bytes(self._device)
        return self._process.resident_bytes() if self._process else None

    def _fork_server(self) -> ForkServer | ColdReason:
        server = self._supervisor.fork_server
        if server is None:
            return ColdReason.SWITCHED_OFF
        if self._device and self._settings.warm_start != "gpu":
            # Forked runs are untried on GPUs, so here the server would only waste memory.
            server.close()
            return ColdReason.GPU
        spec = self._job.resolved_spec
        return ColdReason.BITSANDBYTES if needs_bitsandbytes(spec, model_places(self._settings, spec)) else server

    def _is_asked_to_end(self) -> bool:
        return self._reporter.requested is not None or self._reporter.is_fenced or self._supervisor.is_draining()

    def _environment(self) -> dict[str, str]:
        environment = variables(self._settings)
        if traceparent := tracing.current_traceparent():
            environment[tracing.VARIABLE] = traceparent
        if self._device:
            # Only the GPU whose lock is held.
            environment["CUDA_VISIBLE_DEVICES"] = self._device.uuid
            environment[GPU_VARIABLE] = self._device.uuid
        return environment

    def _watch(self, process: TrainingProcess) -> None:
        """Handles reports, hangs, requests and the worker's shutdown until the process ends."""
        while True:
            reports = process.hear(_TICK_S)
            if reports is None:
                return
            for report in reports:
                start = self._start_of(process) if report["type"] == "first_step" else {}
                self._reporter.receive({**report, **start})
            self._obey(process)
            self._oom_watch.look()
            process.look_at_memory()
            now = time.monotonic()
            limit = self._settings.step_limit_s if self._reporter.phase in _TELLING else self._settings.quiet_limit_s
            if now - process.heard_at > limit and not self._is_hung and self._kill_at is None:
                log.warning("job %s: no sign of life for %g s while %s", self._job.id, limit, self._reporter.phase)
                self._is_hung = True
                self._kill_at = now + _ABORT_GRACE_S
                process.abort()
            if self._kill_at is not None and now >= self._kill_at:
                process.kill()
            if process.killed_at is not None and now >= process.killed_at + _UNKILLABLE_S:
                return

    def _start_of(self, process: TrainingProcess) -> dict[str, Any]:
        """How the process was started, and the seconds since the claim."""
        start = {"start": "cold", "reason": process.cold_reason} if process.cold_reason else {"start": "warm"}
        return {**start, "since_claim_s": round(time.monotonic() - self._claimed_at, 3)}

    def _obey(self, process: TrainingProcess) -> None:
        """Obeys each request of a user or the worker's shutdown, once."""
        if self._reporter.is_fenced:
            process.kill()
            return
        asked, is_draining = self._reporter.requested, self._supervisor.is_draining()
        now = time.monotonic()
        if is_draining and self._drain_ends_at is None:
            self._drain_ends_at = now + self._settings.drain_grace_s
        wants_stop = asked in (Request.PAUSE, Request.CANCEL_SAVING) or is_draining
        if (asked is not None or is_draining) and self._reporter.phase in _NOTHING_TO_SAVE:
            self._is_cancelled = True
            process.kill()
        elif asked is Request.CANCEL and not self._is_cancelled:
            self._is_cancelled = True
            self._kill_at = now + self._settings.cancel_grace_s
            process.interrupt()
        elif wants_stop and not self._is_stopping and not self._is_cancelled:
            self._is_stopping = True
            self._kill_at = now + self._settings.drain_grace_s
            process.ask_to_stop()

    def _gives_up(self) -> bool:
        """Whether to stop waiting for an absent database, because the worker must exit."""
        if self._supervisor.is_draining() and self._drain_ends_at is None:
            self._drain_ends_at = time.monotonic() + self._settings.drain_grace_s
        return self._drain_ends_at is not None and time.monotonic() > self._drain_ends_at

    def _end(self, exit_code: int, was_oom_killed: bool, folder: Path, report: dict[str, Any]) -> None:
        last, requested = self._reporter.last, self._reporter.requested
        log.info("job %s attempt %d: exit code %d, %s", self._job.id, self._job.attempt, exit_code, last.get("type"))
        stopped = last.get("type") == "stopped"
        # A TERM sent to every process may arrive before the training process has installed its handler.
        was_terminated = exit_code == -signal.SIGTERM and self._supervisor.is_draining()
        left_on_request = stopped or self._is_stopping or self._is_cancelled or was_terminated
        saved = {"checkpoint": stopped, "checkpoint_step": self._reporter.checkpoint_step}
        if self._reporter.is_fenced:
            log.warning("job %s attempt %d is not the job's any more", self._job.id, self._job.attempt)
            tracing.note({"tafdil.outcome": "fenced"})
        elif last.get("type") == "finished" and self._not_stored:
            message = say("store_refused", problem=self._not_stored)
            self._fail(error_dict("internal", message), report, folder)
        elif last.get("type") == "finished":
            artifact = (folder / "output").relative_to(self._settings.runs_dir.resolve())
            metadata = last["metadata"]
            values = {"artifact_path": str(artifact), "metadata_": metadata, "effect": metadata.get("effect")}
            self._finish(Cause.FINISH, report, values)
        elif left_on_request and requested in (Request.CANCEL, Request.CANCEL_SAVING):
            # The process group is gone by now, and its memory with it.
            error = error_dict("cancelled", say("cancelled_running"))
            self._finish(Cause.CANCEL, report, {"error": error}, saved, reason=say("cancelled_on_request"))
        elif last.get("type") == "failed" and last["error"]["code"] not in LOSSES:
            self._fail(last["error"], report, folder)
        elif left_on_request and requested is Request.PAUSE:
            self._finish(Cause.PAUSE, report, {}, saved, reason=say("paused_on_request"))
        elif left_on_request:
            self._finish(Cause.PREEMPT, report, {}, saved, reason=say("worker_shut_down"))
        elif was_oom_killed and exit_code < 0 and not self._filled_memory():
            held_mib = self._process.peak_memory_bytes // 2**20 if self._process else 0
            self._lose(say("killed_for_others_memory", held_mib=held_mib), report, pause_s=self._settings.memory_pause_s)
        elif was_oom_killed and exit_code < 0:
            self._fail(error_dict("oom_host", say("host_killed_run")), report, folder)
        elif self._is_hung:
            self._lose(say(f"run_hung.{self._reporter.phase}"), report)
        elif last.get("type") == "failed":
            pause_s = self._settings.memory_pause_s if last["error"]["code"] == "gpu_busy" else 0.0
            self._lose(restored(without_places(self._settings, last["error"])), report, pause_s=pause_s)
        else:
            self._lose(told_by_exit(exit_code), report)

    def _leave(self, folder: Path, last: dict[str, Any]) -> list[ArtifactFile]:
        """Lists the job's files at the end of this attempt."""
        points = self._reporter.insist(lambda session: metrics.series(session, self._job.id), self._gives_up) or []
        files = publisher.leave(self._job, folder, points, last.get("metadata"), last.get("files", {}))
        ends_at = time.monotonic() + _STORE_PATIENCE_S
        while True:
            try:
                Storage(self._settings).publish(self._job.id, files)
                return files
            except Exception as error:
                # Storage clients raise arbitrary errors; none may cost us the trained model.
                log.warning("job %s: the store does not take its files: %s", self._job.id, error)
                if self._gives_up() or time.monotonic() > ends_at:
                    self._not_stored = f"{type(error).__name__}: {error}"
                    return []
                time.sleep(_STORE_RETRY_S)

    def _keep(self, session: Session, is_its_end: bool) -> bool:
        """Stores the list of files in the transaction of the attempt's final state, or not at all."""
        if is_its_end and self._left:
            here = attempts_here(run_dir(self._settings, self._job.id))
            self._dropped = artifacts.keep(session, self._job.tenant, self._job.id, self._left, here)
        if is_its_end and tracing.is_on():
            # Read it back: a last-moment request may have changed it.
            outcome = attempts.outcome(session, self._job.id, self._job.attempt)
            tracing.note({"tafdil.outcome": outcome})
        return is_its_end

    def _clear_store(self) -> None:
        """Removes files from the store that the job no longer has, such as rotated checkpoints."""
        try:
            Storage(self._settings).delete(self._job.id, self._dropped)
        except Exception as error:
            log.warning("job %s: the store keeps %d files too many: %s", self._job.id, len(self._dropped), error)

    def _filled_memory(self) -> bool:
        """Whether this attempt's own processes held most of the memory available to them."""
        return self._process is None or is_most_of(self._process.peak_memory_bytes, memory_limit_bytes())

    def _lose(self, reason: str, report: dict[str, Any], *, pause_s: float = 0.0) -> None:
        log.warning("job %s attempt %d: %s", self._job.id, self._job.attempt, reason)
        tracing.fail("worker_lost")

        def lose(session: Session) -> bool:
            attempts.set_device_report(session, self._job.id, self._job.attempt, report)
            return self._keep(session, jobs.lose(session, self._fence, self._settings.max_losses, reason, pause_s))

        self._reporter.insist(lose, self._gives_up)
        self._clear_store()
        self._supervisor.queue.nudge(self._job.id)

    def _fail(self, error: dict[str, Any], report: dict[str, Any], folder: Path) -> None:
        tracing.fail(error["code"])
        error = without_places(self._settings, error)
        told = {"error": {name: error[name] for name in ("code", "message", "message_code", "params") if name in error}}
        values = {"error": {**error, "log_tail": _tail(folder / "log.txt")}}
        self._finish(Cause.FAIL, report, values, told, reason=restored(error))

    def _finish(
        self,
        cause: Cause,
        report: dict[str, Any],
        values: dict[str, Any],
        data: dict[str, Any] | None = None,
        *,
        reason: str | None = None,
    ) -> None:
        def finish(session: Session) -> bool:
            if report:
                attempts.set_device_report(session, self._job.id, self._job.attempt, report)
            event = {**(data or {}), **({"device": report} if report else {})}
            return self._keep(session, jobs.finish(session, self._fence, cause, values, event, reason=reason))

        self._reporter.insist(finish, self._gives_up)
        self._clear_store()
        self._supervisor.queue.nudge(self._job.id)


def variables(settings: Settings) -> dict[str, str]:
    """Environment variables of every training process, in addition to the worker's own."""
    # Rows are tokenised on all cores. Left unset, tokenizers would warn at the start of each data-loader process.
    environment = {"TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1"}
    if not settings.allow_hub:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _traced(job: JobRecord) -> tracing.Attributes:
    """Span attributes of a job: nothing that its owner wrote except the model's name."""
    return {
        "tafdil.job.id": job.id,
        "tafdil.attempt": job.attempt,
        "tafdil.method": job.method,
        "tafdil.model": job.model_name,
    }


def _tail(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        return file.read().decode("utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
