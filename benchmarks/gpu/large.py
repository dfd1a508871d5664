"""The speed of 7B in bf16 with long prompts."""

from dataclasses import replace

from benchmarks.gpu.arm import Options, Row
from benchmarks.gpu.speed import TINY, Load, measure

LOADS = (Load("qwen2.5-7b", "1024/256", 8, 2, in_4bit=False, checkpointing=True, turns=1),)


def run(options: Options, row: Row) -> None:
    loads = (
        [replace(TINY[0], rows="96/24")]
        if options.shape == "tiny"
        else [one for one in LOADS if options.shape in (None, one.model)]
    )
    measure(loads, options, row)
