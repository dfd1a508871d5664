"""What one training step asks of the device: attention kernels by name, launches, waits, and how busy the GPU is."""

from collections import Counter
from typing import Any

from benchmarks.gpu.arm import Options, Row
from benchmarks.gpu.shapes import model_in
from benchmarks.gpu.sides import WARM_UP_STEPS, Base, Workload, sides_here, train

_ATTENTION = ("flash", "fmha", "attention", "sdpa", "cudnn_generated")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def run(options: Options, row: Row) -> None:
    import torch

    shape = options.shape or "qwen2.5-0.5b"
    model = model_in(options.models, shape)
    rows, sizes = ("24/12", (2, 4)) if shape == "tiny" else ("256/128", (4, 16))
    base = Base()
    for batch_size in sizes:
        workload = Workload(model, options.folder, "ipo", rows, batch_size, WARM_UP_STEPS + 1)
        workload.write_rows()
        # The slowest last: on a GPU it compiles for every length.
        for side in [*sides_here(), *(["segments"] if torch.cuda.is_available() else [])]:
            row(model=shape, rows=rows, batch=batch_size, side=side, **_profiled(side, workload, base))


def _profiled(side: str, workload: Workload, base: Base) -> dict[str, Any]:
    """Of the step after the warm-up."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    profiler = profile(activities=activities)

    def hook(done: int, when: str) -> None:
        if done == WARM_UP_STEPS:
            _ = profiler.__enter__() if when == "begin" else profiler.__exit__(None, None, None)

    run = train(side, workload, base, hook)
    events = list(profiler.events() or [])
    cells: dict[str, Any] = {"operations": sum(event.name.startswith("aten::") for event in events)}
    if not on_gpu:
        return cells
    on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset", "ProfilerStep"))]
    names = Counter(event.name for event in events)
    attention = Counter(event.name[:60] for event in kernels if any(part in event.name.lower() for part in _ATTENTION))
    busy_us = sum(event.time_range.elapsed_us() for event in on_device)
    return {
        **cells,
        "kernels": len(kernels),
        "launches": sum(count for name, count in names.items() if "LaunchKernel" in name),
        "waits": sum(names[name] for name in _WAITS),
        "copies_to_host": sum("DtoH" in event.name for event in on_device),
        "step_s": round(run.seconds[-1], 4),
        "gpu_busy": round(busy_us / 1e6 / run.seconds[-1], 2),
        "attention": dict(attention.most_common(6)),
    }
