"""How much memory does an idle local stack take? `python -m benchmarks.stack_memory --minutes 5`.

Proportional set size (PSS) divides a shared page among the processes that share it. Set `TAFDIL_WARM_START=false` to measure
a stack without a fork server.
"""

import argparse
import tempfile
import time
from pathlib import Path

import psutil

from tafdil.local_stack import LocalStack


def processes() -> list[tuple[str, float]]:
    """What each process below this one is, and its PSS in MiB."""
    found = []
    for process in psutil.Process().children(recursive=True):
        command = process.cmdline()
        parts = [part for part in command if part.startswith(("api.", "worker."))]
        name = parts[0] if parts else Path(command[0].split()[0]).name
        found.append((name, process.memory_full_info().pss / 2**20))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="after the start")
    seconds = 60 * parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder, LocalStack(Path(folder), port=0):
        time.sleep(seconds)
        found = processes()
    print("| process | PSS, MiB |\n| --- | --- |")
    for name, mib in sorted(found, key=lambda each: -each[1]):
        print(f"| {name} | {mib:.0f} |")
    print(f"| all | {sum(mib for _, mib in found):.0f} |")


if __name__ == "__main__":
    main()
