"""Slows, freezes, starves and cuts off every part: `python -m benchmarks.grey_chaos --faults 60 --database postgresql`.

Beside it another tenant submits and reads. None of its requests may stay unanswered for 10 s, its runs continue, and when
the faults are over no job or task is lost, run twice or stuck. The seed is printed; `--seed` draws the same faults again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from benchmarks.grey_faults import Causes, NotHeld, is_silent, seconds_of
from benchmarks.grey_load import ANSWERED_S, Asked, Measured, Noisy
from benchmarks.grey_table import Cell, cells, table
from jobs.records import JobRecord, TaskRecord
from tafdil.client import Client
from tests.rig import history
from tests.rig.grey import GreyRig
from tests.rig.invariants import violations
from tests.stack import until

_TOGETHER = 0.5
# Parts that share a process tree or a row: a second fault there would be another one than the table names.
_GROUPS = (("train worker", "supervisor", "run", "fork server"), ("API", "client"))
# After these a refusal or a lost connection is an answer: what it needs is away, or the process was ended.
_REFUSED = frozenset({503, 507})
_LATE_BODY = 408
# Kinds of problems; a run that finds none of them ends well.
PROBLEMS = (
    "unanswered",
    "lost",
    "double_run",
    "double_published",
    "stuck",
    "illegal",
    "not_ready",
    "stalled",
    "broken",
    "refused",
    "wrong",
)
_SETTLED_S = 240.0
_READY_S = 120.0
_STALLED_S = 120.0
# How long after it a run may report that it found the disk full.
_FULL_LATER_S = 30.0
# A run among the newest of a tenant's jobs; the queue is never as long.
_RECENT = 60


@dataclass
class Fault:
    """A fault that was caused. `ended_at` is when the service was ready again."""

    cell: Cell
    began_at: float
    lifted_at: float = 0.0
    ended_at: float = 0.0


@dataclass
class Found:
    """What a run found: problems by kind, and figures."""

    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    figures: dict[str, Any] = field(default_factory=dict)


class Grey:
    """One run on one rig."""

    def __init__(self, rig: GreyRig, client: Client, measured: Measured, noisy: Noisy, chance: random.Random) -> None:
        self._rig, self._client, self._measured, self._chance = rig, client, measured, chance
        self._causes = Causes(rig, noisy)
        self._tail = history.Tail(rig.history_file)
        self._stepped_at: dict[str, float] = {}
        self.faults: list[Fault] = []
        self.not_held: Counter[str] = Counter()
        self.problems: dict[str, list[str]] = defaultdict(list)

    def run(self, wanted: Sequence[Cell], faults: int, ends_at: float, tell: Callable[[str], None]) -> None:
        """Causes faults of the wanted cells, each as often as any other, until there were enough or time is up."""
        bag: list[Cell] = []
        missed = 0
        while len(self.faults) < faults and time.monotonic() < ends_at and missed < 3 * len(wanted):
            bag = bag or self._chance.sample(list(wanted), len(wanted))
            cell = bag.pop()
            others = [i for i, each in enumerate(bag) if not _share(cell, each)]
            together = [cell]
            if others and self._chance.random() < _TOGETHER and len(self.faults) + 1 < faults:
                together.append(bag.pop(self._chance.choice(others)))
            before = len(self.faults)
            self._cause(together)
            missed = 0 if len(self.faults) > before else missed + 1
            if before // 50 != len(self.faults) // 50:
                tell(f"{len(self.faults)} faults, {len(self._measured.jobs)} jobs, {len(self._measured.asked)} requests")
            self._rest(self._chance.uniform(0.2, 0.6))

    def _cause(self, together: Sequence[Cell]) -> None:
        caused: list[Fault] = []
        with ExitStack() as stack:
            for cell in together:
                chance = random.Random(self._chance.random())
                began_at = time.monotonic()
                try:
                    stack.enter_context(self._causes.cause(cell, chance))
                except (NotHeld, OSError, psutil.Error):
                    self.not_held[str(cell)] += 1
                    continue
                history.note("fault", cell=str(cell))
                caused.append(Fault(cell, began_at))
            if caused:
                self._rest(_lasting(caused, self._chance))
        self._recover(caused)

    def _recover(self, caused: Sequence[Fault]) -> None:
        """Waits until the service is ready and the other tenant's runs have gone a step further."""
        lifted_at = time.monotonic()
        if not self._await(self._is_ready, _READY_S):
            self.problems["not_ready"].append(f"{_seconds(_READY_S)} after {_names(caused)}")
        ended_at = time.monotonic()
        for fault in caused:
            fault.lifted_at, fault.ended_at = lifted_at, ended_at
        self.faults += caused
        if caused and not self._await(lambda: self._has_stepped(lifted_at), _STALLED_S):
            self.problems["stalled"].append(f"no run made a step within {_seconds(_STALLED_S)} after {_names(caused)}")

    def _is_ready(self) -> bool:
        try:
            return self._client.ready()
        except Exception:
            return False

    def _has_stepped(self, since: float) -> bool:
        """Whether a run of the other tenant made a step, or it has none."""
        for line in self._tail.more():
            if line["what"] in ("step", "finished"):
                self._stepped_at[line["job"]] = line["at"]
        runs = self._measured.runs()
        return not runs or any(self._stepped_at.get(job_id, 0.0) > since for job_id in self._measured.jobs[-_RECENT:])

    def _await(self, what: Callable[[], bool], seconds: float) -> bool:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self._rig.watch()
            if what():
                return True
            time.sleep(0.1)
        return False

    def _rest(self, seconds: float) -> None:
        self._await(lambda: False, seconds)

    def settle(self) -> None:
        """Peace: nobody asks for anything, and every job and task ends."""
        self._measured.stop()
        self._await(self._is_over, _SETTLED_S)

    def _is_over(self) -> bool:
        database = self._rig.database()
        try:
            with database.reading() as session:
                open_jobs = select(JobRecord.id).where(JobRecord.state.in_(("queued", "running", "paused")))
                open_tasks = select(TaskRecord.id).where(TaskRecord.state.in_(("queued", "running")))
                return session.scalar(open_jobs.limit(1)) is None and session.scalar(open_tasks.limit(1)) is None
        except Exception:
            return False
        finally:
            database.dispose()


def _lasting(caused: Sequence[Fault], chance: random.Random) -> float:
    """How long faults last together: as long as the longest, but the API stands still only for as long as one may wait."""
    each = {fault.cell: seconds_of(fault.cell, chance) for fault in caused}
    waits = [seconds for cell, seconds in each.items() if is_silent(cell)]
    return min(waits) if waits else max(each.values())


def _share(one: Cell, other: Cell) -> bool:
    return one.part == other.part or any(one.part in group and other.part in group for group in _GROUPS)


def _names(faults: Sequence[Fault]) -> str:
    return " + ".join(str(fault.cell) for fault in faults)


def _seconds(value: float) -> str:
    return f"{value:.0f} s"


# -- what was found


def may_refuse(cell: Cell, database: str) -> bool:
    """Whether the API may answer 503 or 507 while this lasts: the database or the disk below it is away."""
    if cell.part == "database" or (cell.part == "API" and cell.held == "database"):
        return True
    # The database is a file, and one writer that stands still or waits for its disk holds up all others.
    writes = cell.held in ("transaction", "log") or (cell.fault == "frozen" and cell.part not in ("client", "broker", "run"))
    return database == "sqlite" and writes


def may_break(cell: Cell) -> bool:
    """Whether connections may break off.

    The kernel ended the API to get memory back; or the API stood still, and found on waking that an idle connection had been
    open for too long, just as the next request arrived on it. Clients send such a request again.
    """
    return cell.part == "API" and cell.fault in ("memory", "frozen")


def judge_requests(asked: Sequence[Asked], faults: Sequence[Fault], database: str) -> dict[str, list[str]]:
    """Requests without an answer in time, and answers that no fault at that moment explains."""
    problems: dict[str, list[str]] = defaultdict(list)
    for request in asked:
        during = [fault for fault in faults if fault.began_at <= request.ended_at and request.began_at <= fault.ended_at]
        told = f"{request.kind} {request.path}: {request.seconds:.1f} s, status {request.status}, during {_names(during)}"
        if request.status == -1:
            problems["unanswered"].append(told)
        elif request.status == 0 and not any(may_break(fault.cell) for fault in during):
            problems["broken"].append(told)
        elif request.status in _REFUSED and not any(may_refuse(fault.cell, database) for fault in during):
            problems["refused"].append(told)
        elif request.status == _LATE_BODY and any(is_silent(fault.cell) for fault in during):
            # The API stood still, and found on waking that a body had been under way for too long. Clients send it again.
            continue
        elif request.status >= 400 and request.status not in _REFUSED:
            problems["wrong"].append(told)
    return problems


def latencies(asked: Sequence[Asked], faults: Sequence[Fault]) -> dict[str, Any]:
    """p50, p99 and the longest of each kind of request, in all, without a fault, and by fault."""
    groups: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for request in asked:
        during = {
            f"{fault.cell.part}/{fault.cell.fault}"
            for fault in faults
            if fault.began_at <= request.ended_at and request.began_at <= fault.lifted_at
        }
        for name in ("all", *(during or {"no fault"})):
            groups[name, request.kind].append(request.seconds)
    shown: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for (name, kind), found in sorted(groups.items()):
        shown[name][kind] = {
            "n": len(found),
            "p50_s": round(statistics.median(found), 3),
            "p99_s": round(sorted(found)[min(len(found) - 1, int(len(found) * 0.99))], 3),
            "max_s": round(max(found), 3),
        }
    return dict(shown)


def continued(lines: Sequence[dict[str, Any]], faults: Sequence[Fault], jobs: set[str]) -> int:
    """During how many faults a run of the other tenant made steps."""
    steps = sorted(line["at"] for line in lines if line["what"] == "step" and line["job"] in jobs)
    return sum(any(fault.began_at < at < fault.lifted_at for at in steps) for fault in faults)


def check(rig: GreyRig, strange: set[str], faults: Sequence[Fault]) -> Found:
    """What is wrong with jobs and tasks after everything was over, and how they ended."""
    database, lines, found = rig.database(), rig.history(), Found()
    clock_off_s = time.time() - time.monotonic()
    full = [fault for fault in faults if fault.cell.fault == "full disk"]

    def was_full(error: dict[str, Any] | None, finished_at: float | None) -> bool:
        """Whether this is the end that a full disk has, at a time when a disk was full."""
        at = (finished_at or 0.0) - clock_off_s
        is_then = any(fault.began_at <= at <= fault.ended_at + _FULL_LATER_S for fault in full)
        return is_then and (error or {}).get("code") == "disk_full"

    with database.transaction() as session:
        for kind, problems in violations(session, lines, without=strange).items():
            found.problems[kind] += problems
        states: Counter[str] = Counter()
        for job in session.scalars(select(JobRecord)):
            is_full = job.state == "failed" and was_full(job.error, job.finished_at)
            states["disk_full" if is_full else job.state] += 1
            if job.state == "failed" and not is_full:
                found.problems["lost"].append(f"job {job.id} failed: {job.error}")
        ends: Counter[str] = Counter()
        for task in session.scalars(select(TaskRecord)):
            ends[f"{task.kind} {task.state}"] += 1
            if task.state in ("queued", "running"):
                found.problems["stuck"].append(f"task {task.id} ({task.kind}) is {task.state}, attempt {task.attempt}")
            elif task.error and not was_full(task.error, task.finished_at):
                found.problems["lost"].append(f"task {task.id} ({task.kind}) failed: {task.error}")
    database.dispose()
    found.figures = {"jobs": dict(states), "tasks": dict(ends)}
    return found


# -- the run


@contextmanager
def started(options: argparse.Namespace, folder: Path, *, answers: bool) -> Generator[tuple[GreyRig, Noisy, Measured]]:
    """A rig with its two tenants, the noisy one with a trained job where tasks need one."""
    rig = GreyRig(folder, options.workers, options.database, answers=answers)
    os.environ[history.VARIABLE] = str(rig.history_file)
    with rig:
        noisy = Noisy(rig.tenant("noisy"), f"http://127.0.0.1:{rig.links['client', 'api'].port}")
        measured = Measured(rig.tenant("measured"), options.seed, options.pause_s)
        if answers:
            noisy.trained = rig.really_trained(noisy.tenant)
        noisy.once("submit")
        measured.start()
        until(measured.runs)
        try:
            yield rig, noisy, measured
        finally:
            measured.stop()
            os.environ.pop(history.VARIABLE, None)


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells to cause: all of this database's, or those that contain one of the given words."""
    found = [cell for cell in cells() if options.database == "postgresql" or not cell.is_database_of_its_own]
    if options.without_answers:
        found = [cell for cell in found if not cell.needs_answers]
    if options.only:
        found = [cell for cell in found if any(word in str(cell) for word in options.only)]
    return found


def run(options: argparse.Namespace, tell: Callable[[str], None] = print) -> bool:
    began_at = time.monotonic()
    wanted = chosen(options)
    tell(f"seed {options.seed}, {options.faults} faults of {len(wanted)} kinds, {options.database}")
    with tempfile.TemporaryDirectory(prefix="tafdil-grey-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        answers = any(cell.needs_answers for cell in wanted)
        rig, noisy, measured = stack.enter_context(started(options, Path(folder), answers=answers))
        client = stack.enter_context(Client(rig.url, timeout_s=ANSWERED_S, retries=0))
        grey = Grey(rig, client, measured, noisy, random.Random(options.seed))
        grey.run(wanted, options.faults, began_at + 60 * options.minutes, tell)
        grey.settle()
        found = check(rig, {noisy.trained}, grey.faults)
        lines = rig.history()
        for kind, wrong in (grey.problems | judge_requests(measured.asked, grey.faults, options.database)).items():
            found.problems[kind] += wrong
        if options.keep and any(found.problems.values()):
            _keep(rig, options.keep)
    times = latencies(measured.asked, grey.faults)
    result = {
        "seed": options.seed,
        "database": options.database,
        "has_small_disks": rig.has_disks,
        "minutes": round((time.monotonic() - began_at) / 60, 1),
        "faults": len(grey.faults),
        "cells": len({fault.cell for fault in grey.faults}),
        "not_held": dict(grey.not_held),
        "by_fault": dict(sorted(Counter(f"{fault.cell.part}/{fault.cell.fault}" for fault in grey.faults).items())),
        "runs_continued": continued(lines, grey.faults, set(measured.jobs)),
        "requests": len(measured.asked),
        "statuses": dict(Counter(str(request.status) for request in measured.asked)),
        "noise": dict(noisy.sent),
        **found.figures,
        **{name: len(found.problems[name]) for name in PROBLEMS},
        "times": times,
    }
    _tell(result, found, tell)
    return not any(found.problems.values())


def _keep(rig: GreyRig, folder: Path) -> None:
    """Copies what explains a problem before the rig's directory is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [rig.history_file, *(rig.data_dir / "logs").glob("*.log")]:
        shutil.copy(path, folder / path.name)


def _tell(result: dict[str, Any], found: Found, tell: Callable[[str], None]) -> None:
    tell(json.dumps(result))
    for name, problems in found.problems.items():
        for problem in problems[:20]:
            tell(f"{name}: {problem}")
    for kind, each in result["times"].get("all", {}).items():
        tell(f"{kind}: {each['n']}, p50 {each['p50_s']} s, p99 {each['p99_s']} s, longest {each['max_s']} s")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60, help="how many to cause")
    parser.add_argument("--minutes", type=float, default=40, help="stop causing faults after this time")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--pause-s", type=float, default=1.0, help="mean time between two submits of the other tenant")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only cells such as API/hole/database that contain a word")
    parser.add_argument(
        "--without-answers", action="store_true", help="without the workers for checks, comparisons and exports"
    )
    parser.add_argument("--keep", type=Path, help="where to put logs and the history when something is wrong")
    parser.add_argument("--table", action="store_true", help="print the table of parts, faults and what is held, and end")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = parse()
    if given.table:
        print(table())
        sys.exit(0)
    # Told to end, it still ends its processes and unmounts its disks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(0 if run(given) else 1)
