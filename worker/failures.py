"""Classifies the end of a training process: which failures fail the job, and which only cost an attempt."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from trainer_core.wording import Message, say

# Failures reported by the training process that another attempt, on a healthy device, may avoid.
LOSSES = frozenset({"gpu_lost", "gpu_busy"})
GPU_VARIABLE = "TAFDIL_TRAINS_ON"
"""The variable that names a training process's GPU; unset on a machine without one."""
EXIT_SUPERVISOR_SILENT = 75
"""Exit code of a training process whose supervisor was silent for too long."""

_CGROUPS = Path("/sys/fs/cgroup")
# The kernel may kill any process for memory. One that held more than this share of it was itself the cause.
_OWN_SHARE = 0.5


def oom_kills(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Number of processes in this control group that the kernel has killed for memory; 0 if unavailable."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    places = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        below = path.lstrip("/")
        if not controllers:
            places += [cgroups / below / "memory.events", cgroups / "memory.events"]
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            places += [root / below / "memory.oom_control", root / "memory.oom_control"]
    for place in places:
        try:
            fields = dict(line.split() for line in place.read_text(encoding="ascii").splitlines())
            return int(fields["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue
    return 0


def memory_limit_bytes(
    cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup"), machine: Path = Path("/proc/meminfo")
) -> int | None:
    """The memory available to this process and its children: the lowest of its control groups' limits and the machine's."""
    limits: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        limits.append(int(machine.read_text(encoding="ascii").split("MemTotal:")[1].split()[0]) * 1024)
    groups: list[Path] = []
    with suppress(OSError, ValueError):
        for line in own.read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                groups += _upwards(cgroups, path, "memory.max")
            elif "memory" in controllers.split(","):
                groups += _upwards(cgroups / "memory", path, "memory.limit_in_bytes")
    for place in groups:
        # Version 2 writes "max" for no limit.
        with suppress(OSError, ValueError):
            limits.append(int(place.read_text(encoding="ascii")))
    return min(limits, default=None)


def _upwards(root: Path, path: str, name: str) -> list[Path]:
    """The paths of a file in a control group and each of its parents."""
    group = root / path.lstrip("/")
    return [each / name for each in (group, *group.parents) if each.is_relative_to(root)]


def is_most_of(peak_bytes: int, limit_bytes: int | None) -> bool:
    """Whether a process with this peak filled the memory itself. If not, it was killed because of others."""
    return limit_bytes is not None and peak_bytes > _OWN_SHARE * limit_bytes


class OomWatch:
    """Whether the kernel has just killed a process of this control group for memory.

    The count covers the whole group, so only a rise right before the training process ended points to it.
    """

    _EVERY_S = 5.0

    def __init__(self, count: Callable[[], int] = oom_kills, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._looks = [(clock(), count())]

    def look(self) -> None:
        """Call it often during training."""
        if self._clock() - self._looks[-1][0] >= self._EVERY_S:
            self._looks = [self._looks[-1], (self._clock(), self._count())]

    def has_risen(self) -> bool:
        return self._count() > self._looks[0][1]


def told_by_exit(exit_code: int, what: Literal["run", "task"] = "run") -> Message:
    """The exit code of a process that trained or answered, in words."""
    if exit_code == EXIT_SUPERVISOR_SILENT:
        return say("supervisor_silent")
    if exit_code < 0:
        return say("run_killed" if what == "run" else "task_killed", signal=signal.Signals(-exit_code).name)
    return say("run_exited" if what == "run" else "task_exited", exit_code=exit_code)
