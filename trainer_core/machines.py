"""How fast this machine computes, for estimates of time."""

import time

import torch

from trainer_core.dry_run import Machine
from trainer_core.models import free_memory

_MEASURE_S = 0.3
_ROWS, _WIDTH = 512, 1024
# Share of a large multiplication's speed that a whole run reaches: see docs/estimates.md.
_SHARE = 0.78


def this_machine() -> Machine:
    """This machine, its speed measured by multiplying matrices for a third of a second."""
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    rows, width = (8 * _ROWS, 4 * _WIDTH) if on_gpu else (_ROWS, _WIDTH)
    left, right = torch.ones(rows, width, device=device, dtype=dtype), torch.ones(width, width, device=device, dtype=dtype)

    def multiply() -> None:
        torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize()

    multiply()
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < _MEASURE_S:
        multiply()
        count += 1
    return Machine(
        on_gpu=on_gpu,
        name=torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        flops_per_s=_SHARE * 2 * rows * width * width * count / taken,
        free_bytes=free_memory(),
    )
