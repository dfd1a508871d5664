"""Which grey fault each part of the service can have, and what the part holds meanwhile. No cell of the table is empty.

`python -m benchmarks.grey_table` prints the table that is in docs/reliability.md.
"""

from dataclasses import dataclass

FAULTS = {
    "frozen": "it is stopped (SIGSTOP) and later resumes (SIGCONT)",
    "slow": "its connection delays every piece of data",
    "hole": "its connection stays open and delivers nothing",
    "half-open": "the other end closed its connections without a word; new ones work",
    "full disk": "its file system has no byte left",
    "slow disk": "each sync, rename or commit takes a tenth of a second longer",
    "memory": "other processes fill its control group",
    "load": "one tenant sends ten times its usual load",
}

# What cannot happen, and why.
REASONS = {
    "a": "It talks to its supervisor alone, over a pipe.",
    "b": "A connection has its faults in the row of the process that opened it.",
    "c": "It writes no file of its own.",
    "d": "Tenants reach it only through the API.",
    "e": "It is the client's own machine, of which the service sees nothing.",
    "f": "A worker has one run at a time, whatever waits.",
    "g": "The broker keeps nothing on disk.",
    "h": "It is another tenant's load, as in the row of the API.",
}

_LINKS = ("broker", "database")
TABLE: dict[str, dict[str, tuple[str, ...] | str]] = {
    "client": {
        "frozen": ("request", "stream"),
        "slow": ("upload",),
        "hole": ("upload", "stream"),
        "half-open": ("stream", "long poll"),
        "full disk": "e",
        "slow disk": "e",
        "memory": "e",
        "load": "h",
    },
    "API": {
        "frozen": ("requests", "transaction"),
        "slow": _LINKS,
        "hole": _LINKS,
        "half-open": _LINKS,
        "full disk": ("upload",),
        "slow disk": ("upload", "transaction"),
        "memory": ("requests",),
        "load": ("submits", "uploads", "checks", "long polls", "streams"),
    },
    "dispatcher": {
        "frozen": ("round", "transaction"),
        "slow": _LINKS,
        "hole": _LINKS,
        "half-open": _LINKS,
        "full disk": "c",
        "slow disk": ("transaction",),
        "memory": ("round",),
        "load": "d",
    },
    "train worker": {
        "frozen": ("messages",),
        "slow": ("broker",),
        "hole": ("broker",),
        "half-open": ("broker",),
        "full disk": "c",
        "slow disk": "c",
        "memory": ("messages",),
        "load": "d",
    },
    "supervisor": {
        "frozen": ("lease", "transaction"),
        "slow": ("database",),
        "hole": ("database",),
        "half-open": ("database",),
        "full disk": ("attempt",),
        "slow disk": ("transaction",),
        "memory": ("lease",),
        "load": "d",
    },
    "run": {
        "frozen": ("device", "checkpoint"),
        "slow": "a",
        "hole": "a",
        "half-open": "a",
        "full disk": ("checkpoint",),
        "slow disk": ("checkpoint",),
        "memory": ("device",),
        "load": "f",
    },
    "fork server": {
        "frozen": ("fork",),
        "slow": "a",
        "hole": "a",
        "half-open": "a",
        "full disk": "c",
        "slow disk": "c",
        "memory": ("fork",),
        "load": "f",
    },
    "generation worker": {
        "frozen": ("answer",),
        "slow": _LINKS,
        "hole": _LINKS,
        "half-open": _LINKS,
        "full disk": "c",
        "slow disk": ("transaction",),
        "memory": ("answer",),
        "load": ("comparisons",),
    },
    "checks worker": {
        "frozen": ("answer",),
        "slow": _LINKS,
        "hole": _LINKS,
        "half-open": _LINKS,
        "full disk": "c",
        "slow disk": ("transaction",),
        "memory": ("answer",),
        "load": "h",
    },
    "exports worker": {
        "frozen": ("answer",),
        "slow": _LINKS,
        "hole": _LINKS,
        "half-open": _LINKS,
        "full disk": ("merged files",),
        "slow disk": ("merged files",),
        "memory": ("answer",),
        "load": ("merges",),
    },
    "broker": {
        "frozen": ("messages",),
        "slow": "b",
        "hole": "b",
        "half-open": "b",
        "full disk": "g",
        "slow disk": "g",
        "memory": ("messages",),
        "load": "d",
    },
    "database": {
        "frozen": ("every connection", "transaction"),
        "slow": "b",
        "hole": "b",
        "half-open": "b",
        "full disk": ("tables",),
        "slow disk": ("log",),
        "memory": ("connections",),
        "load": "d",
    },
}


@dataclass(frozen=True, order=True)
class Cell:
    """A fault of a part while it holds something."""

    part: str
    fault: str
    held: str

    def __str__(self) -> str:
        return f"{self.part}/{self.fault}/{self.held}"

    @property
    def is_database_of_its_own(self) -> bool:
        """Whether it needs a database that is a server: SQLite is a file and has neither processes nor connections."""
        is_server = self.part == "database" and self.fault in ("frozen", "memory")
        return is_server or (self.fault in ("slow", "hole", "half-open") and self.held == "database")

    @property
    def needs_answers(self) -> bool:
        """Whether it needs the workers that answer tasks."""
        asks = ("checks", "long poll", "long polls")
        return self.part in ("generation worker", "checks worker", "exports worker") or self.held in asks


def cells() -> list[Cell]:
    """Every fault that can be caused, in the order of the table."""
    return [
        Cell(part, fault, held)
        for part, row in TABLE.items()
        for fault, found in row.items()
        if not isinstance(found, str)
        for held in found
    ]


def table() -> str:
    """What the columns mean, the table in Markdown, and the reasons."""
    lines = [*(f"- *{fault}*: {text}" for fault, text in FAULTS.items()), ""]
    lines += [f"| | {' | '.join(FAULTS)} |", "|---" * (len(FAULTS) + 1) + "|"]
    for part, row in TABLE.items():
        shown = [f"({row[fault]})" if isinstance(row[fault], str) else ", ".join(row[fault]) for fault in FAULTS]
        lines.append(f"| {part} | {' | '.join(shown)} |")
    reasons = [f"- ({letter}) {text}" for letter, text in REASONS.items()]
    return "\n".join([*lines, "", *reasons])


if __name__ == "__main__":
    print(table())
