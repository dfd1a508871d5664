"""What really happened, kept outside of the database: one JSON line for each thing done, appended by whoever does it.

Instants are `time.monotonic()`, which all processes of a machine share.
"""

import json
import os
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

VARIABLE = "TAFDIL_TEST_HISTORY"


def note(what: str, **fields: Any) -> None:
    """Appends a line to the file that the environment names; does nothing where it names none."""
    path = os.environ.get(VARIABLE)
    if path:
        line = json.dumps({"at": time.monotonic(), "what": what, "pid": os.getpid(), **fields}) + "\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Tail:
    """The lines of a file that are new since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def more(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            found = file.read()
        whole = found[: found.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def lifetimes(lines: list[dict[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """Of each job, its trainings: attempt, first and last instant at which they did something."""
    spans: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for line in lines:
        if "attempt" in line:
            spans[line["job"], line["attempt"]].append(line["at"])
    found: defaultdict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for (job, attempt), instants in sorted(spans.items()):
        found[job].append((attempt, min(instants), max(instants)))
    return dict(found)


def overlaps(lines: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Pairs of attempts of one job that did something at the same time.

    What a process does after it was stopped past its lease is left out: until it learns that it is fenced it may go on, and
    none of it counts.
    """
    stopped = {line["training"]: line["at"] for line in lines if line["what"] == "sigstop"}
    counted = [line for line in lines if line["at"] <= stopped.get(line["pid"], line["at"])]
    found = []
    for job, spans in lifetimes(counted).items():
        ordered = sorted(spans, key=lambda span: span[1])
        found += [(job, one[0], other[0]) for one, other in pairwise(ordered) if other[1] < one[2]]
    return found
