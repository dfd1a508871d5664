"""How fast are rows checked, and in how much memory? `python -m benchmarks.validate_throughput --megabytes 1024`.

Writes files of KTO rows and of pairs as JSONL, and pairs as one JSON document, and gives them to the checker in pieces, as
an upload arrives. Memory is what the process took at most while it checked, beyond what it had before.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu.shapes import SHIPPED
from trainer_core.rows import RowChecker

KINDS = {
    "KTO, JSONL": "kto_train.jsonl",
    "pairs, JSONL": "pairs_train.jsonl",
    "pairs, one JSON document": "pairs_train.jsonl",
}
PIECE_BYTES = 2**20


def write(path: Path, kind: str, size: int) -> int:
    """Fills a file with the shipped rows, again and again. Returns how many."""
    rows = (SHIPPED / "data" / KINDS[kind]).read_text(encoding="utf-8").splitlines()
    is_document = "document" in kind
    written = count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"train": [' if is_document else "")
        while written < size:
            if is_document and count:
                file.write(",")
            text = rows[count % len(rows)] + ("" if is_document else "\n")
            written += len(text.encode())
            count += 1
            file.write(text)
        file.write("]}" if is_document else "")
    return count


def check(path: Path) -> dict[str, float]:
    """Checks a file in this process: rows, seconds, and MiB beyond the start."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checker = RowChecker(path=path)
    began = time.perf_counter()
    with path.open("rb") as file:
        while data := file.read(PIECE_BYTES):
            checker.feed(data)
    report = checker.close()
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"rows": report.train_rows, "seconds": seconds, "grown_mib": grown / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(check(options.one)))
        return
    command = " ".join(["python -m benchmarks.validate_throughput", *sys.argv[1:]])
    print(f"{platform.machine()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}. Made with `{command}`.\n")
    print("| file | size, MB | rows | MB/s | rows/s | memory beyond the start, MiB |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        for size in options.megabytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "rows"
                count = write(path, kind, size * 10**6)
                command = [sys.executable, "-m", "benchmarks.validate_throughput", "--one", str(path)]
                one = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            if one["rows"] != count:
                sys.exit(f"{count} rows were written and {one['rows']} found")
            cells = (f"{size / one['seconds']:.1f}", f"{count / one['seconds']:,.0f}", f"{one['grown_mib']:.0f}")
            print(f"| {kind} | {size} | {count:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
