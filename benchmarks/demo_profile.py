"""Where the runs of `tafdil demo` spend their CPU time: `python -m benchmarks.demo_profile`.

Each method trains in this process, by the demo's own specs. CPU seconds by phase, and by what functions of this library
took with all that they called, the profiler's own time included.
"""

import argparse
import cProfile
import pstats
import tempfile
import time
from typing import Any

from benchmarks.phases import spans
from tafdil.demo import MODEL, SPECS
from tafdil.local_stack import SHIPPED_DIR
from trainer_core import PreferenceTrainer
from trainer_core.config import CONFIG_OF, SETTINGS_OF
from trainer_core.observer import Observer

WATCHED = {
    "evaluations": ("tokenized.py", "evaluate"),
    "own metrics in them": ("preference_trainer.py", "_validation_metrics"),
    "attention": ("attention.py", "packed_attention"),
}


class _Phases(Observer):
    def __init__(self) -> None:
        self.began: list[tuple[str, float]] = []

    def phase(self, name: str) -> None:
        self.began.append((name, time.process_time()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=SPECS, default=list(SPECS))
    for method in parser.parse_args().methods:
        by_phase, watched = profiled(method)
        whole = sum(by_phase.values())
        print(f"{method}: {whole:.1f} s")
        for name, seconds in {**by_phase, **watched}.items():
            print(f"  {name:20} {seconds:6.1f} s {100 * seconds / whole:4.0f} %")


def profiled(method: str) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds of the phases, and of the watched functions."""
    data, phases = SHIPPED_DIR / "data", _Phases()
    rows = "kto_train" if SETTINGS_OF[method].rows == "labels" else "pairs_train"
    spec: dict[str, Any] = {**SPECS[method], "model_name": str(SHIPPED_DIR / "models" / MODEL)}
    config_class: Any = CONFIG_OF[spec.pop("method")]
    profile = cProfile.Profile(time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"dataset_path": data / f"{rows}.jsonl", "eval_dataset_path": data / "pairs_held_out.jsonl"}
        config = config_class(**spec, **{name: str(path) for name, path in paths.items()}, output_dir=folder)
        profile.runcall(PreferenceTrainer(config, observer=phases).train)
    ended = time.process_time()
    functions: dict[Any, Any] = pstats.Stats(profile).stats  # pyright: ignore[reportAttributeAccessIssue]
    watched = {
        name: sum((row[3] for key, row in functions.items() if key[0].endswith(file) and key[2] == function), 0.0)
        for name, (file, function) in WATCHED.items()
    }
    return spans(phases.began, ended), watched


if __name__ == "__main__":
    main()
