"""What a dry run estimates for Qwen models on common GPUs, from their published shapes alone: no weights, no GPU.

    python -m benchmarks.real_models        # the table of docs/tutorial.md

The rows are pairs of one length. A dry run of your own rows is closer; a first run of the model on your GPU is closer still.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.shapes import SHAPES
from trainer_core.config import IPOConfig, PreferenceConfig
from trainer_core.estimates import MEMORY_BAND, TIME_BAND_OF_DEVICE, Load, Size, memory_parts, work
from trainer_core.row_rules import Row
from worker.gpu import typical_flops_per_s

PAIRS = 10_000
PROMPT_TOKENS = 200
ANSWER_TOKENS = 200
# Names as `nvidia-smi` reports them, and GiB.
GPUS = {"L4": 24, "RTX 4090": 24, "A100": 80}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5-0.5B-Instruct": ("qwen2.5-0.5b", {}),
    "Qwen2.5-7B-Instruct, 4-bit": ("qwen2.5-7b", {"load_in_4bit": True}),
    "Qwen2.5-7B-Instruct": ("qwen2.5-7b", {}),
}


def rows() -> list[Row]:
    return [
        {"prompt_ids": [0] * PROMPT_TOKENS, "chosen_ids": [0] * ANSWER_TOKENS, "rejected_ids": [0] * ANSWER_TOKENS}
        for _ in range(PAIRS)
    ]


def estimated(shape: str, config: PreferenceConfig, gpu: str) -> tuple[float, float]:
    """Peak memory in GiB, and hours."""
    size, load = Size.of(SHAPES[shape]), Load.of(rows(), [], config)
    parts = memory_parts(config, size, load, "bf16", on_gpu=True, checkpointing=True)
    flops_per_s = typical_flops_per_s(gpu)
    assert flops_per_s
    seconds = work(config, size, load, checkpointing=True).seconds(flops_per_s, is_measured=False)
    return sum(parts.values()) / 2**30, seconds / 3600


def table() -> Iterator[str]:
    yield "| model | download | GPU memory | " + " | ".join(f"{gpu}, {gib} GiB" for gpu, gib in GPUS.items()) + " |"
    yield "|---|---|---|" + "---|" * len(GPUS)
    low, high = TIME_BAND_OF_DEVICE
    for name, (shape, options) in MODELS.items():
        config = IPOConfig(model_name=name, dataset_path="pairs.jsonl", output_dir="model", num_train_epochs=1, **options)
        download = 2 * Size.of(SHAPES[shape]).weights / 1e9
        memory, cells = 0.0, []
        for gpu, gib in GPUS.items():
            memory, hours = estimated(shape, config, gpu)
            cells.append("does not fit" if MEMORY_BAND[1] * memory > gib else f"{low * hours:.1f} to {high * hours:.1f} h")
        yield f"| {name} | {download:.1f} GB | {memory:.1f} GiB | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))
