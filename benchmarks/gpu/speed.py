"""Seconds a step, tokens a second and peak memory, next to TRL's own trainers: sides take turns, A B A B."""

from dataclasses import dataclass
from statistics import median

from benchmarks.gpu.arm import Options, Row
from benchmarks.gpu.shapes import model_in
from benchmarks.gpu.sides import WARM_UP_STEPS, Base, Run, Workload, sides_here, train
from trainer_core.config import HEADLINE

_TURNS = 2


@dataclass(frozen=True)
class Load:
    """One model and one shape of rows."""

    model: str
    rows: str
    batch: int
    steps: int
    in_4bit: bool
    checkpointing: bool
    turns: int = _TURNS


LOADS = (
    Load("qwen2.5-0.5b", "256/128", 16, 6, in_4bit=False, checkpointing=False),
    Load("qwen2.5-7b", "256/128", 8, 4, in_4bit=True, checkpointing=True, turns=1),
)
# What runs in a minute on any machine.
TINY = (
    Load("tiny", "24/12", 2, 2, in_4bit=False, checkpointing=False, turns=1),
    Load("tiny", "24/12", 2, 2, in_4bit=True, checkpointing=True, turns=1),
)


def run(options: Options, row: Row) -> None:
    loads = TINY if options.shape == "tiny" else [one for one in LOADS if options.shape in (None, one.model)]
    measure(loads, options, row)


def measure(loads: tuple[Load, ...] | list[Load], options: Options, row: Row) -> None:
    """Records a row for each load and method."""
    for load in loads:
        model, base = model_in(options.models, load.model), Base()
        for method in HEADLINE:
            steps = WARM_UP_STEPS + load.steps
            workload = Workload(
                model, options.folder, method, load.rows, load.batch, steps, load.in_4bit, load.checkpointing, "bf16"
            )
            workload.write_rows()
            runs: dict[str, list[Run]] = {side: [] for side in sides_here()}
            for _ in range(load.turns):
                for side, found in runs.items():
                    found.append(train(side, workload, base))
            row(
                model=load.model,
                weights="4-bit" if load.in_4bit else "bf16",
                rows=load.rows,
                batch=load.batch,
                method=method,
                **_told(runs),
            )


def _told(runs: dict[str, list[Run]]) -> dict[str, float | None]:
    """Medians of each side, and the fast sides next to stock."""
    cells: dict[str, float | None] = {}
    stock = runs["stock"]
    stock_s = median(run.step_s for run in stock)
    for side, found in runs.items():
        step_s = median(run.step_s for run in found)
        cells[f"{side}_step_s"] = round(step_s, 4)
        cells[f"{side}_tokens_s"] = round(found[0].tokens / step_s)
        peak = [run.peak_gib for run in found if run.peak_gib is not None]
        cells[f"{side}_gib"] = round(median(peak), 2) if peak else None
        if side == "core":
            best_s = min(median(run.step_s for run in runs[name]) for name in runs if name != "core")
            cells["faster_than_best_stock"] = round(best_s / step_s, 2)
        if side != "stock":
            cells[f"{side}_faster"] = round(stock_s / step_s, 2)
            pairs = zip(stock[0].losses, found[0].losses, strict=True)
            cells[f"{side}_loss_difference"] = float(f"{max(abs(a - b) / abs(a) for a, b in pairs):.2g}")
    return cells
