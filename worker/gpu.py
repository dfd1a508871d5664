"""This worker's GPU: which one it is, who may use it, and whether it is free again. Uses `nvidia-smi`, not torch."""

import csv
import fcntl
import logging
import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

log = logging.getLogger(__name__)

_DEVICES = Path("/dev")
_ASK_TIMEOUT_S = 20
_FREE_TIMEOUT_S = 10.0
# Memory that has not dropped for as long as this belongs to others.
_STILL_S = 2.0
# By how much a driver's own memory use varies between readings.
_TOLERANCE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of it, by its unique id."""

    uuid: str
    name: str


# Dense bf16 throughput (T4, V100: fp16) from the data sheets, in TFLOP/s; longer names first.
_PEAK_TFLOPS = (
    ("B200", 2250),
    ("H200", 989),
    ("H100 PCIe", 756),
    ("H100", 989),
    ("A100", 312),
    ("L40S", 362),
    ("L40", 181),
    ("L4", 121),
    ("A10G", 70),
    ("A10", 125),
    ("A6000", 155),
    ("RTX 5090", 209),
    ("RTX 4090", 165),
    ("RTX 3090", 71),
    ("V100", 125),
    ("T4", 65),
)
# The share of the peak that runs with adapters commonly reach.
_COMMON_SHARE = 0.3


def typical_flops_per_s(name: str) -> float | None:
    """A first guess at a GPU's throughput in training, by its name; None if it is unknown."""
    return next((_COMMON_SHARE * tflops * 1e12 for part, tflops in _PEAK_TFLOPS if part in name), None)


class GpuUnknown(Exception):
    """The machine's GPUs cannot be determined right now."""


def visible_gpu() -> Gpu | None:
    """The first GPU in `CUDA_VISIBLE_DEVICES`, or None on a machine without one.

    A worker trains on one GPU, the only one visible to the training process.

    Raises:
        GpuUnknown: there are GPUs, but they cannot be identified; training now could use one that another worker holds.
    """
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _are_hidden(wanted):
        return None
    first = wanted.split(",")[0].strip() if wanted else "0"
    if first.startswith("MIG-"):
        return Gpu(first, "MIG slice")
    answer = _ask("gpu", "index,uuid,name")
    if answer is None:
        if _are_there():
            raise GpuUnknown("nvidia-smi fails on a machine that has GPUs")
        return None
    for index, uuid, name in answer:
        if first == index or (first.startswith("GPU-") and uuid.startswith(first)):
            return Gpu(uuid, name)
    return None


def may_be_visible() -> bool:
    """Whether this machine has GPUs that this worker may see. Starts no process, so it is instant."""
    return _are_there() and not _are_hidden(os.environ.get("CUDA_VISIBLE_DEVICES"))


def _are_there() -> bool:
    return any(_DEVICES.glob("nvidia[0-9]*"))


def _are_hidden(wanted: str | None) -> bool:
    return wanted is not None and wanted.strip() in ("", "-1", "NoDevFiles")


def memory_used_bytes(gpu: Gpu) -> int | None:
    """Device memory in use by all processes, in bytes; None if unavailable."""
    for uuid, used in _ask("gpu", "uuid,memory.used") or []:
        if uuid == gpu.uuid and used.isdigit():
            return int(used) * 2**20
    return None


def memory_after_bytes(gpu: Gpu, before: int | None) -> int | None:
    """Device memory in use once it has dropped to `before`, or no longer drops: drivers free it with a delay.

    The rest is other processes', such as comparisons that began meanwhile.
    """
    now = time.monotonic()
    deadline, still_until, least = now + _FREE_TIMEOUT_S, now + _STILL_S, None
    while True:
        used = memory_used_bytes(gpu)
        if used is None or before is None or used <= before + _TOLERANCE_BYTES:
            return used
        now = time.monotonic()
        if least is None or used < least:
            least, still_until = used, now + _STILL_S
        if now > min(still_until, deadline):
            return used
        time.sleep(0.2)


class GpuLock:
    """The right to use a GPU on this host. The kernel releases it when every process that holds it has ended.

    The training process inherits it, so one that outlives its supervisor still keeps others out.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, gpu: Gpu, folder: Path) -> Self | None:
        """Takes the lock, or returns None if another process holds it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"tafdil-{gpu.uuid.replace('/', '_')}.lock"
        # Try to open before creating: in a sticky directory the kernel refuses O_CREAT on another user's file.
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            with suppress(PermissionError):
                path.chmod(0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def release(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


def _ask(what: str, fields: str) -> list[list[str]] | None:
    """Rows of `nvidia-smi --query-<what>=<fields>`; empty if the program is missing, None if it fails."""
    command = ["nvidia-smi", f"--query-{what}={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True)
    except FileNotFoundError:
        return []
    except (subprocess.SubprocessError, OSError) as error:
        log.warning("nvidia-smi does not answer: %s", error)
        return None
    return list(csv.reader(answer.stdout.splitlines(), skipinitialspace=True))
