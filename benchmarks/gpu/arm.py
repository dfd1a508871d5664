"""The arms in order of value, and the process that runs one.

python -m benchmarks.gpu.arm parity --shape tiny --rows rows.jsonl
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Callable[..., None]
"""Records one line of results: cells by name, as JSON takes them."""


@dataclass(frozen=True)
class Arm:
    """One question to a GPU.

    Attributes:
        seconds: what it takes on an H200, about. An arm that has less left is not begun.
    """

    name: str
    question: str
    seconds: float


@dataclass(frozen=True)
class Options:
    """Options of an arm.

    Attributes:
        shape: the model of every arm; None: each arm's own.
        folder: empty, for its files.
        models: where arms that follow each other share models.
        seconds: how long it may take.
    """

    shape: str | None
    folder: Path
    models: Path
    seconds: float


ARMS = (
    Arm("machine", "What is this machine?", 20),
    Arm("parity", "How far are the fast and the plain path from float64?", 40),
    Arm("kernels", "Which attention kernels run, and what does a step launch and wait for?", 40),
    Arm("speed", "How fast is a step next to TRL's own trainers, and what memory does it take?", 240),
    Arm("whole", "Does a whole training end, with each kind of weights and precision, and how long do its parts take?", 120),
    Arm("resume", "Is a resumed training bit-equal to one that was never interrupted?", 100),
    Arm("service", "Does the whole service train, cancel and compare on the GPU, and with forked runs, too?", 150),
    Arm("busy", "Does a run that another process leaves no memory wait, and succeed?", 100),
    Arm("large", "The same as speed, with 7B in bf16 and long prompts.", 170),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[arm.name for arm in ARMS])
    parser.add_argument("--shape")
    parser.add_argument("--rows", type=Path, help="a file that gets a JSON object a row")
    parser.add_argument("--models", type=Path, help="a folder of models that arms share")
    parser.add_argument("--seconds", type=float, default=3600.0)
    options = parser.parse_args()
    started = time.perf_counter()

    def row(**cells: Any) -> None:
        line = json.dumps(cells, ensure_ascii=False)
        print(f"{options.name} at {time.perf_counter() - started:.0f} s: {line}", flush=True)
        if options.rows:
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    module = importlib.import_module(f"benchmarks.gpu.{options.name}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module.run(Options(options.shape, folder, options.models or folder, options.seconds), row)


if __name__ == "__main__":
    main()
