"""What the machine is, and the two ceilings of everything that follows: bf16 arithmetic and memory traffic."""

import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median

from benchmarks.gpu.arm import Options, Row

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")


def run(options: Options, row: Row) -> None:
    import torch

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    cells = {name: version(name) for name in LIBRARIES if find_spec(name)}
    row(device=torch.cuda.get_device_name() if on_gpu else "CPU", **cells)
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        row(
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            capability=".".join(map(str, torch.cuda.get_device_capability())),
            free_gib=round(free / 2**30, 2),
            total_gib=round(total / 2**30, 2),
            driver_and_clocks=_asked("driver_version,clocks.sm,clocks.mem,power.draw"),
        )
    side, numbers = (8192, 2**29) if on_gpu else (256, 2**20)
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    source = torch.randn(numbers, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    row(
        bf16_tflops=round(2 * side**3 / _seconds(lambda: a @ b) / 1e12, 1),
        copied_gb_s=round(2 * 4 * numbers / _seconds(lambda: target.copy_(source)) / 1e9, 1),
    )


def _seconds(work: Callable[[], object]) -> float:
    """Median of ten, after three of warm-up."""
    import torch

    times: list[float] = []
    for _ in range(13):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[3:])


def _asked(fields: str) -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
