"""What does a GPU do with this library? Arms in order of value, each in a process of its own, within the minutes there are.

    python benchmarks/gpu_check.py --minutes 10 --write docs/gpu.md    # about 20 GiB of disk, 80 GiB of GPU memory
    python benchmarks/gpu_check.py --arms machine parity
    python benchmarks/gpu_check.py --shape qwen2.5-0.5b                # every arm with this model
    python benchmarks/gpu_check.py --shape tiny                        # the same code anywhere, on a CPU too

The weights are random, so that nothing is fetched: memory and speed depend on shapes alone, and losses say nothing. Each row
is printed when it is known; `--out` gets them as JSON, one file an arm, and `gpu_check.json` with everything.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.arm import ARMS, Arm  # noqa: E402  # also when run as a script
from benchmarks.gpu.shapes import SHAPES  # noqa: E402

START = "<!-- the last run -->"
# An arm that takes longer than it should must not take the time of the others.
_PATIENCE = 1.5


@dataclass
class Outcome:
    """What became of an arm: `ended`, `failed`, `cut` (its time was over) or `not reached`; and its rows until then."""

    arm: str
    state: str
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


Start = Callable[[list[str], dict[str, str], IO[bytes]], Any]
"""Starts a Python module, given its command, environment and output; returns the process, like `subprocess.Popen`."""
RunArm = Callable[[Arm, float | None], Outcome]
"""Runs an arm, and stops it after the given number of seconds."""


def run_in_order(arms: Sequence[Arm], seconds: float | None, run: RunArm, clock: Callable[[], float]) -> list[Outcome]:
    """Runs the arms that fit into the time; a shorter one may fit where a longer one did not.

    Args:
        seconds: for all; None: without a limit, of an arm either.
    """
    began = clock()
    outcomes: list[Outcome] = []
    for arm in arms:
        left = None if seconds is None else seconds - (clock() - began)
        if left is not None and left < arm.seconds:
            outcomes.append(Outcome(arm.name, "not reached"))
        else:
            outcomes.append(run(arm, None if left is None else min(left, _PATIENCE * arm.seconds)))
    return outcomes


def start_process(command: list[str], environment: dict[str, str], output: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def run_arm(
    arm: Arm, seconds: float | None, shape: str | None, out: Path, models: Path, *, start: Start = start_process
) -> Outcome:
    """Runs an arm in a process of its own; whatever it wrote until it ended counts."""
    rows, log = out / f"{arm.name}.jsonl", out / f"{arm.name}.log"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.arm", arm.name, "--rows", str(rows), "--models", str(models)]
    command += ["--shape", shape] if shape else []
    command += ["--seconds", f"{seconds:.0f}"] if seconds else []
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    began = time.monotonic()
    state, error = "ended", None
    with log.open("wb") as file:
        process = start(command, {**os.environ, "PYTHONPATH": python_path}, file)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # It ends what it has started; an arm that does not is ended.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            state, code = "cut", 0
    if code:
        state, error = "failed", "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
    found = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    outcome = Outcome(arm.name, state, round(time.monotonic() - began, 1), [json.loads(line) for line in found], error)
    print(f"== {arm.name}: {state} after {outcome.seconds} s", *found, *([error] if error else []), sep="\n", flush=True)
    return outcome


def as_markdown(outcomes: Sequence[Outcome], shape: str | None) -> str:
    """The run as a page shows it."""
    command = " ".join(["python benchmarks/gpu_check.py", *sys.argv[1:]])
    of_shape = f"; every arm with the shape {shape}" if shape else ""
    lines = [f"{datetime.now(UTC):%Y-%m-%d}{of_shape}. Made with `{command}`."]
    questions = {arm.name: arm.question for arm in ARMS}
    for outcome in outcomes:
        lines += ["", f"### {questions[outcome.arm]}", ""]
        lines += [f"`{outcome.arm}`: {outcome.state}" + (f" after {outcome.seconds:.0f} s" if outcome.seconds else "") + "."]
        for table in _tables(outcome.rows):
            lines += ["", *table]
        if outcome.error:
            lines += ["", "```", outcome.error, "```"]
    return "\n".join(lines)


def _tables(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One table for rows of the same cells; a lone row stands upright."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(tuple(row), []).append(row)
    tables: list[list[str]] = []
    for names, of_kind in kinds.items():
        lines: list[Sequence[object]] = [names, ["---"] * len(names), *(row.values() for row in of_kind)]  # pyright: ignore[reportAssignmentType]
        if len(of_kind) == 1:
            lines = [["what", "value"], ["---", "---"], *of_kind[0].items()]
        tables.append(["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines])
    return tables


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.replace("|", "/").split())


def main(arguments: list[str] | None = None, start: Start = start_process) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="the model of every arm; default each arm's own")
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], default=[arm.name for arm in ARMS])
    parser.add_argument("--minutes", type=float, help="stop in time, and say what was not reached")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="a folder for rows, logs and all in one")
    parser.add_argument("--write", type=Path, help="a page whose last run is replaced, e.g. docs/gpu.md")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    arms = [arm for arm in ARMS if arm.name in options.arms]
    seconds = None if options.minutes is None else 60 * options.minutes
    with tempfile.TemporaryDirectory() as models:

        def run(arm: Arm, limit: float | None) -> Outcome:
            return run_arm(arm, limit, options.shape, options.out, Path(models), start=start)

        outcomes = run_in_order(arms, seconds, run, time.monotonic)
    everything = {"command": sys.argv, "at": datetime.now(UTC).isoformat(), "arms": [asdict(one) for one in outcomes]}
    (options.out / "gpu_check.json").write_text(json.dumps(everything, ensure_ascii=False, indent=1), encoding="utf-8")
    text = as_markdown(outcomes, options.shape)
    print(text)
    if options.write:
        head = options.write.read_text(encoding="utf-8").partition(START)[0]
        options.write.write_text(f"{head}{START}\n\n{text}\n", encoding="utf-8")
    failed = [one.arm for one in outcomes if one.state == "failed"]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
