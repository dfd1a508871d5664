"""How long the report about a large file takes.

python -m benchmarks.report_throughput                 # 100,000 pairs, and as many labelled rows
python -m benchmarks.report_throughput --rows 10000

The rows are those of a clean file of `benchmarks.planted_files`: answers of about 24 words. `CPU seconds` are those of this
process, which uses one core; they do not grow when other programs keep the machine busy.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.planted_files import Planted, rows_of
from trainer_core.data_report import report_of_file, vocabulary_in

MODEL = Path(__file__).resolve().parents[1] / "tafdil" / "shipped" / "models" / "tafdil" / "tiny-arabic-qwen-2"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shapes", nargs="+", choices=["pairs", "labels"], default=["pairs", "labels"])
    options = parser.parse_args(arguments)
    columns = (
        "rows",
        "shape",
        "words of an answer (median)",
        "CPU seconds",
        "seconds",
        "CPU seconds with tokens",
        "peak MiB",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            rows = rows_of(Planted("clean", shape, 0.5, 7), options.rows)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            words = median(len(row.get("chosen", row.get("completion")).split()) for row in rows)
            del rows
            began, cpu = time.perf_counter(), time.process_time()
            found = report_of_file(path)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            assert found["rows"] == options.rows
            with_tokens = time.process_time()
            report_of_file(path, vocabulary_in(MODEL, "tiny"))
            with_tokens = time.process_time() - with_tokens
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cells = (
            f"{options.rows:,}",
            shape,
            f"{words:.0f}",
            f"{cpu:.0f}",
            f"{seconds:.0f}",
            f"{with_tokens:.0f}",
            f"{peak:.0f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
