"""GPUs, memory and disks.

What a plain machine lacks stands in: a program that answers as `nvidia-smi` does, a control group with little memory, a
small tmpfs. A test says why it skips where it cannot.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from tests.checkpoints import WEIGHTS, write_parts
from tests.disks import small_disk
from tests.faults.conftest import StartRig
from tests.faults.test_processes import finished, the_training
from tests.rig import history
from tests.rig.stack import job_spec, running
from tests.stack import ENOUGH_S, alive, until
from trainer_core.checkpoints import StagedCheckpoints, newest_verified, verified_step
from trainer_core.errors import DiskFull
from trainer_core.observer import Observer
from worker import child, gpu
from worker.failures import LOSSES, OomWatch, is_most_of, memory_limit_bytes, oom_kills

MIB = 2**20
# A device of 8 GiB: 100 MiB are always in use, 2,000 MiB more while the process in the memory file lives.
SMI = """#!/bin/sh
used=100
if [ -f "$MEMORY_FILE" ] && kill -0 "$(cat "$MEMORY_FILE")" 2>/dev/null; then used=2100; fi
case "$1" in
  --query-gpu=index,uuid,name) echo "0, GPU-7a, Stand-in 8GB"; echo "1, GPU-7b, Stand-in 8GB";;
  --query-gpu=uuid,memory.used) echo "GPU-7a, $used"; echo "GPU-7b, 100";;
  *) exit 2;;
esac
"""


@pytest.fixture
def stand_in_gpu(tmp_path: Path) -> dict[str, str]:
    """Variables under which a worker sees two GPUs that are none."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "MEMORY_FILE": str(tmp_path / "memory"),
        "TAFDIL_LOCK_DIR": str(tmp_path / "locks"),
    }


def test_which_gpu_a_worker_sees(stand_in_gpu: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.visible_gpu() is None, "a machine without nvidia-smi has none"
    monkeypatch.setenv("PATH", stand_in_gpu["PATH"])
    monkeypatch.setenv("MEMORY_FILE", stand_in_gpu["MEMORY_FILE"])
    expected = {
        "0": "GPU-7a",
        "1": "GPU-7b",
        "1,0": "GPU-7b",
        "GPU-7b": "GPU-7b",
        "MIG-3f": "MIG-3f",
        "": None,
        "-1": None,
        "9": None,
    }
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first = gpu.visible_gpu()
    assert first == gpu.Gpu("GPU-7a", "Stand-in 8GB")
    assert gpu.memory_used_bytes(first) == 100 * MIB
    for value, uuid in expected.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        found = gpu.visible_gpu()
        assert (found.uuid if found else None) == uuid, value


def test_two_workers_on_one_gpu(start_rig: StartRig, stand_in_gpu: dict[str, str], tmp_path: Path) -> None:
    """The second worker refuses the claim while the first trains; no job fails, and none runs beside the other."""
    rig, client = start_rig(workers=2, settings=stand_in_gpu)
    memory = {"memory_file": stand_in_gpu["MEMORY_FILE"], "step_s": 0.05}
    first = client.submit(job_spec(160, behaviour=memory))["id"]
    running(client, first)
    second = client.submit(job_spec(10, behaviour=memory))["id"]
    for job_id, steps in ((first, 160), (second, 10)):
        assert finished(rig, client, job_id, steps)["attempt"] == 1
        (attempt,) = client.attempts(job_id)
        assert attempt["device"] == "GPU-7a"
    spans = history.lifetimes(rig.history())
    assert spans[first][0][2] < spans[second][0][1]
    logs = "".join((rig.data_dir / "logs" / f"train-worker-{n}.log").read_text() for n in (1, 2))
    assert "GPU-7a (Stand-in 8GB) is in use by another worker" in logs


def test_a_gpu_is_proven_free(start_rig: StartRig, stand_in_gpu: dict[str, str]) -> None:
    """After a cancel the end event tells the device's memory before and after, and that no process is left."""
    _, client = start_rig(settings=stand_in_gpu)
    job_id = client.submit(job_spec(200, behaviour={"memory_file": stand_in_gpu["MEMORY_FILE"], "linger_at": 5}))["id"]
    running(client, job_id, 5)
    client.cancel(job_id)
    client.wait(job_id, ENOUGH_S)
    device = list(client.events(job_id))[-1]["data"]["device"]
    assert device == {
        "name": "Stand-in 8GB",
        "memory_before_bytes": 100 * MIB,
        "memory_after_bytes": 100 * MIB,
        "processes_left": [],
    }
    assert client.attempts(job_id)[0]["device_report"] == device


def test_memory_that_others_hold_delays_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that began beside the run keeps its model on the GPU: seen on an H200, where each end took 10 s more."""
    now, device = 0.0, gpu.Gpu("GPU-7a", "x")
    uses = [900, 900, 900, 700, 300]

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr(gpu, "memory_used_bytes", lambda _: (uses.pop(0) if len(uses) > 1 else uses[0]) * MIB)
    assert gpu.memory_after_bytes(device, 100 * MIB) == 300 * MIB
    assert 2 < now < 4
    uses, now = [900] * 5 + [120], 0.0
    assert gpu.memory_after_bytes(device, 100 * MIB) == 120 * MIB
    assert now < 2


def test_a_training_keeps_its_gpu_locked_when_its_worker_is_gone(tmp_path: Path) -> None:
    """The lock is the training's too: only the end of every process that holds it frees the GPU."""
    device = gpu.Gpu("GPU-7a", "x")
    lock = gpu.GpuLock.take(device, tmp_path)
    assert lock
    with subprocess.Popen(["sleep", "60"], pass_fds=[lock.descriptor]) as holder:
        lock.release()
        assert gpu.GpuLock.take(device, tmp_path) is None
        holder.kill()
    again = gpu.GpuLock.take(device, tmp_path)
    assert again
    again.release()


def test_classes_lead_jobs_to_their_workers(start_rig: StartRig) -> None:
    rig, client = start_rig(workers=2, each={"train-worker-2": {"TAFDIL_GPU_CLASS": "big"}})
    busy = [client.submit(job_spec(100, behaviour={"step_s": 0.05}))["id"] for _ in range(2)]
    for job_id in busy:
        running(client, job_id)
    classed = [client.submit(job_spec(3, gpu_class="big"))["id"] for _ in range(2)]
    plain = client.submit(job_spec(3))["id"]
    unserved = client.submit(job_spec(3, gpu_class="other"))["id"]
    for job_id in [*classed, plain]:
        finished(rig, client, job_id, 3)
    on_big = client.attempts(classed[0])[0]["worker"]
    assert {client.attempts(job_id)[0]["worker"] for job_id in classed} == {on_big}
    assert client.job(unserved)["state"] == "queued"


@contextmanager
def little_memory(limit_bytes: int) -> Generator[Path]:
    """A control group with a memory limit (version 1 or 2); skips where none can be made."""
    name = f"tafdil-test-{os.getpid()}"
    for root, limit in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        group = root / name
        try:
            group.mkdir()
            (group / limit).write_text(str(limit_bytes))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        try:
            yield group
        finally:
            members = group / "cgroup.procs"
            for pid in members.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            until(lambda members=members: not members.read_text().split())
            group.rmdir()
        return
    pytest.skip("needs root and a writable memory control group")


def test_a_training_that_takes_all_memory(start_rig: StartRig) -> None:
    """The kernel ends the training, not its worker: the job fails as oom_host, and the next one runs on the same worker."""
    with little_memory(400 * MIB) as group:
        rig, client = start_rig()
        main = rig.pid("train-worker-1")
        for process in [psutil.Process(main), *psutil.Process(main).children(recursive=True)]:
            (group / "cgroup.procs").write_text(str(process.pid))
        job_id = client.submit(job_spec(20, behaviour={"allocate_at": 3}))["id"]
        job = client.wait(job_id, ENOUGH_S)
        assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", "oom_host", 1)
        assert not job["error"]["retryable"]
        assert finished(rig, client, client.submit(job_spec(3))["id"], 3)
        assert rig.pid("train-worker-1") == main
        assert alive({main})


# Joins a control group and fills it until a process is gone, below the share at which the kernel would rather kill the hog.
HOG = """
import os, sys, time
from pathlib import Path
held, pid, most = [], int(sys.argv[1]), int(sys.argv[2])
# First of all: what it held before would not count there.
Path(sys.argv[3], "cgroup.procs").write_text(str(os.getpid()))
while os.path.exists(f"/proc/{pid}/fd/0"):
    if len(held) < most:
        held.append(bytearray(os.urandom(2**10) * 2**10))
    else:
        time.sleep(0.05)
"""


def test_a_training_that_is_killed_for_the_memory_of_other_processes(start_rig: StartRig) -> None:
    """The attempt counts as lost. The run is retried from its checkpoint after a pause, and its user is not blamed."""
    with little_memory(500 * MIB) as group:
        rig, client = start_rig(settings={"TAFDIL_MEMORY_PAUSE_S": "3"})
        main = rig.pid("train-worker-1")
        for process in [psutil.Process(main), *psutil.Process(main).children(recursive=True)]:
            (group / "cgroup.procs").write_text(str(process.pid))
        job_id = client.submit(job_spec(400, save_steps=5, behaviour={"linger_at": 12}))["id"]
        running(client, job_id, 12)
        command = [sys.executable, "-c", HOG, str(the_training(rig, job_id)), "235", str(group)]
        hogs = [subprocess.Popen(command) for _ in range(2)]
        try:
            until(lambda: client.job(job_id)["attempt"] == 2)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        first = client.attempts(job_id)[0]
        assert (first["outcome"], client.job(job_id)["error"]) == ("worker_lost", None)
        assert "other processes filled the memory" in first["reason"]
        assert client.attempts(job_id)[1]["started_at"] - first["ended_at"] >= timedelta(seconds=3)
        retried = until(lambda: [line["step"] for line in rig.lines(job_id, "step") if line["attempt"] == 2])
        assert retried[0] > 5


def test_the_memory_limit_is_that_of_the_smallest_group_around(tmp_path: Path) -> None:
    own, machine = tmp_path / "own", tmp_path / "meminfo"
    machine.write_text("MemTotal:       1000 kB\nMemFree: 1 kB\n")
    (tmp_path / "job/one").mkdir(parents=True)
    own.write_text("0::/job/one\n")
    assert memory_limit_bytes(tmp_path, own, machine) == 1_024_000
    (tmp_path / "job/one/memory.max").write_text("max\n")
    (tmp_path / "job/memory.max").write_text("4096\n")
    assert memory_limit_bytes(tmp_path, own, machine) == 4096
    (tmp_path / "memory/old").mkdir(parents=True)
    (tmp_path / "memory/old/memory.limit_in_bytes").write_text("2048\n")
    own.write_text("4:memory:/old\n")
    assert memory_limit_bytes(tmp_path, own, machine) == 2048
    assert memory_limit_bytes(tmp_path, tmp_path / "absent", tmp_path / "absent") is None
    assert is_most_of(600, 1000)
    assert not is_most_of(400, 1000)
    assert not is_most_of(400, None)


@pytest.mark.parametrize(("others_gib", "code"), [(70, "gpu_busy"), (10, "oom_gpu")])
def test_a_gpu_that_other_processes_filled_is_not_the_runs_fault(
    monkeypatch: pytest.MonkeyPatch, others_gib: int, code: str
) -> None:
    """By CUDA's own numbers, as no GPU is at hand: of 80 GiB the run holds what the others leave."""
    own = (80 - others_gib) * 2**30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: own)
    error = child.describe(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"))
    assert error["code"] == code
    assert (code in LOSSES) == error["retryable"] == (not error["user_fault"])


def test_a_gpu_that_is_too_full_to_begin_on_is_not_the_runs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA itself refuses then, and does not report the free memory either: an H200 that another process had filled."""
    full = torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later")

    def mem_get_info() -> None:
        raise full

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    error = child.describe(full)
    assert error["code"] == "gpu_busy"
    assert "CUDA error: out of memory" in error["message"]


def test_the_kernels_count_is_read_from_both_kinds_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (tmp_path / "one/memory/job").mkdir(parents=True)
    (tmp_path / "one/memory/job/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    own.write_text("5:cpu:/x\n4:memory:/job\n0::/\n")
    assert oom_kills(tmp_path / "one", own) == 3
    (tmp_path / "two/job").mkdir(parents=True)
    (tmp_path / "two/job/memory.events").write_text("low 0\noom 2\noom_kill 2\n")
    own.write_text("0::/job\n")
    assert oom_kills(tmp_path / "two", own) == 2
    assert oom_kills(tmp_path / "none", own) == 0
    assert oom_kills(tmp_path, tmp_path / "absent") == 0


def test_an_old_kill_of_another_process_is_not_the_trainings() -> None:
    """The count rises in the first seconds; the training is killed by somebody else a minute later."""
    now, kills = 0.0, 3
    watch = OomWatch(lambda: kills, lambda: now)
    assert not watch.has_risen()
    kills = 4
    assert watch.has_risen()
    for _ in range(60):
        now += 1
        watch.look()
    assert not watch.has_risen()
    kills = 5
    assert watch.has_risen()


def test_a_full_disk_keeps_the_last_good_checkpoint(start_rig: StartRig, tmp_path: Path) -> None:
    """The job fails as disk_full; after space is freed, a rerun from its checkpoint ends it."""
    runs = tmp_path / "data" / "runs"
    with small_disk(runs, "10m"):
        rig, client = start_rig()
        shared = {"filler_bytes": 3 * MIB, "step_s": 0.05}
        job_id = client.submit(job_spec(30, behaviour=shared))["id"]
        blocker = runs / "blocker"
        running(client, job_id, 6)

        def block() -> bool:
            """Whether there was room beside the checkpoints, of which an old one may still be there."""
            try:
                blocker.write_bytes(b"x" * 3 * MIB)
            except OSError:
                blocker.unlink(missing_ok=True)
            return blocker.exists()

        until(block)
        job = client.wait(job_id, ENOUGH_S)
        assert (job["state"], job["error"]["code"], job["error"]["retryable"]) == (
            "failed",
            "disk_full",
            True,
        ), job["error"]
        kept = newest_verified([runs / job_id / "attempt-1" / "output"])
        assert kept
        assert verified_step(kept) == job["checkpoint_step"] >= 5
        blocker.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(runs)], check=True)
        again = client.rerun(job_id, from_checkpoint=True)["id"]
        assert finished(rig, client, again, 30)["state"] == "succeeded"
        assert client.attempts(again)[0]["first_step"] == job["checkpoint_step"]


class _Writes:
    """As much of a trainer as saving needs: each checkpoint is large in one file."""

    size_bytes = MIB + MIB // 2

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
        write_parts(folder, lambda: b"x")
        (folder / WEIGHTS).write_bytes(b"x" * self.size_bytes)


class _Saving(StagedCheckpoints, _Writes):
    def __init__(self, folder: Path) -> None:
        self.args = SimpleNamespace(output_dir=str(folder), save_total_limit=3)
        self.state = SimpleNamespace(global_step=0)
        self.observer = Observer()


def test_older_checkpoints_make_room_before_a_disk_is_called_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "5m"):
        trainer = _Saving(disk)
        for step in (1, 2, 3, 4):
            trainer.state.global_step = step
            trainer._save_checkpoint(None, None)
        assert sorted(path.name for path in disk.iterdir()) == ["checkpoint-3", "checkpoint-4"]
        trainer.state.global_step, trainer.size_bytes = 5, 4 * MIB
        with pytest.raises(DiskFull, match="step 5"):
            trainer._save_checkpoint(None, None)
        kept = newest_verified([disk])
        assert kept
        assert verified_step(kept) == 4
