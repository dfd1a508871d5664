"""How each cell of the table is caused on a rig. A fault is a context: it lasts until the block ends."""

import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil

from benchmarks.grey_load import Noisy
from benchmarks.grey_table import Cell
from tests.rig import history
from tests.rig.grey import MIB, GreyRig, signalled
from tests.rig.proxy import Proxy

# How long to wait until a part holds what the fault shall find held.
_HELD_WITHIN_S = 4.0
_MEMORY_BYTES = 48 * MIB
# The disks are slow by hundreds of times what a sync takes here, and still far from a limit of the service.
_SLOW_SYNC_S, _SLOW_COMMIT_S = 0.1, 0.15
_SERVICES = {
    "API": "api",
    "dispatcher": "dispatcher",
    "train worker": "train-worker",
    "supervisor": "train-worker",
    "generation worker": "generation-worker",
    "checks worker": "checks-worker",
    "exports worker": "exports-worker",
    "broker": "valkey",
    "database": "postgres",
}
_TASKS = {"generation worker": "compare", "checks worker": "check", "exports worker": "merge"}
_OPENED = {"request": "request", "requests": "request", "stream": "stream", "long poll": "long poll", "upload": "upload"}
# Kinds of load: the request, how many at a time, and the pause between two of each. The measured tenant sends one at a time.
_LOADS = {
    "submits": ("submit", 8, 0.5),
    "uploads": ("upload", 8, 0.5),
    "checks": ("check", 8, 0.5),
    "long polls": ("poll", 12, 0.2),
    "streams": ("stream", 24, 0.2),
    "comparisons": ("compare", 8, 0.5),
    "merges": ("merge", 4, 1.0),
}


class NotHeld(Exception):
    """The part did not hold what the fault is about, so nothing was caused."""


def is_silent(cell: Cell) -> bool:
    """Whether nobody answers a request while it lasts."""
    return cell.part == "API" and cell.fault == "frozen"


def seconds_of(cell: Cell, chance: random.Random) -> float:
    """How long a fault lasts: most for a moment, some for longer than a lease, those of the database past the bound."""
    is_long = chance.random() < 0.25
    if is_silent(cell):
        return chance.uniform(0.5, 4.0)
    waits_for_database = cell.held in ("database", "every connection") or (cell.fault, cell.held) == (
        "frozen",
        "transaction",
    )
    if is_long and waits_for_database:
        return chance.uniform(11.0, 13.0)
    return chance.uniform(4.5, 6.0) if is_long else chance.uniform(0.5, 2.5)


class Causes:
    """Causes faults on a rig, in the name of the noisy tenant where a tenant is needed."""

    def __init__(self, rig: GreyRig, noisy: Noisy) -> None:
        self._rig, self._noisy = rig, noisy

    @contextmanager
    def cause(self, cell: Cell, chance: random.Random) -> Generator[None]:
        """Raises `NotHeld` before anything was caused, `OSError` or `psutil.Error` where a process has just ended."""
        how: Callable[[Cell, random.Random], Any] = getattr(self, f"_{cell.fault.replace(' ', '_').replace('-', '_')}")
        with how(cell, chance):
            yield

    # -- processes

    @contextmanager
    def _frozen(self, cell: Cell, chance: random.Random) -> Generator[None]:
        if cell.part == "client":
            with self._noisy.open(_OPENED[cell.held], 8):
                yield
            return
        with ExitStack() as held:
            if cell.held == "transaction":
                stopped = held.enter_context(self._frozen_in_transaction(cell, chance))
            else:
                self._hold(cell, held)
                pids = self._pids(cell, chance)
                if cell.part == "supervisor":
                    self._note_fenced(pids)
                stopped = signalled(pids, signal.SIGSTOP)
            if not stopped:
                raise NotHeld
            try:
                yield
            finally:
                signalled(stopped, signal.SIGCONT)

    @contextmanager
    def _frozen_in_transaction(self, cell: Cell, chance: random.Random) -> Generator[list[int]]:
        """Stops a process between a write and its commit: its rows stay locked, on SQLite the whole file."""
        if cell.part == "database":
            yield signalled([self._backend(chance)], signal.SIGSTOP)
            return
        token = secrets.token_hex(8)
        mark = self._rig.orders_file.with_name(f"{self._rig.orders_file.name}.{token}")
        self._rig.order("freeze", dict.fromkeys(self._rig.names(_SERVICES[cell.part]), token))
        if cell.part == "API":
            # Its request is answered only when the API resumes.
            threading.Thread(target=self._noisy.once, args=("submit",), daemon=True).start()
        try:
            found = _within(lambda: mark.exists() and mark.read_text(encoding="ascii"))
            if not found and not self._withdrawn(mark):
                raise NotHeld
            pid = int(mark.read_text(encoding="ascii"))
            if cell.part == "supervisor":
                self._note_fenced([pid])
            yield [pid]
        finally:
            self._rig.order("freeze", {})
            # One that obeys between the last look and the withdrawal must not stay frozen.
            if mark.exists():
                time.sleep(0.05)
                signalled([int(mark.read_text(encoding="ascii"))], signal.SIGCONT)

    def _withdrawn(self, mark: Any) -> bool:
        self._rig.order("freeze", {})
        return bool(_within(lambda: mark.exists() and mark.read_text(encoding="ascii"), 0.3))

    def _backend(self, chance: random.Random) -> int:
        """A backend of PostgreSQL, preferably one in a transaction."""
        root = psutil.Process(self._rig.pid("postgres"))

        def look() -> list[int]:
            titles = {child.pid: " ".join(child.cmdline()) for child in root.children()}
            return sorted(
                pid for pid, title in titles.items() if title.endswith(("idle in transaction", "INSERT", "UPDATE"))
            )

        found = _within(look) or sorted(child.pid for child in root.children() if "127.0.0.1" in " ".join(child.cmdline()))
        if not found:
            raise NotHeld
        return chance.choice(found)

    def _name(self, cell: Cell, chance: random.Random) -> str:
        names = self._rig.names(_SERVICES[cell.part])
        if not names:
            raise NotHeld
        return chance.choice(names)

    def _pids(self, cell: Cell, chance: random.Random) -> list[int]:
        rig = self._rig
        if cell.part == "run":
            return [self._run(chance, is_saving=cell.held == "checkpoint")]
        if cell.part == "fork server":
            return [_choice(chance, rig.fork_servers())]
        name = self._name(cell, chance)
        if cell.part == "supervisor":
            return [_choice(chance, rig.pool_children(name))]
        # A worker that answers is frozen as a whole, as a paused container is; of the others it is one process.
        return rig.tree(name) if cell.part in _TASKS or cell.part == "database" else [rig.pid(name)]

    def _run(self, chance: random.Random, *, is_saving: bool) -> int:
        def look() -> int | None:
            runs = sorted(self._rig.training_pids())
            if not is_saving:
                return chance.choice(runs) if runs else None
            staged = [path.name.rpartition("-")[2] for path in self._rig.data_dir.glob("runs/*/*/output/.staging-*")]
            return next((run for run in runs if str(run) in staged), None)

        found = _within(look, every_s=0.02)
        if not found:
            raise NotHeld
        return found

    def _note_fenced(self, supervisors: list[int]) -> None:
        """What the runs of a supervisor do that may lose its lease meanwhile does not count; the checker leaves it out."""
        for run in self._rig.training_pids():
            with suppress(psutil.Error):
                if psutil.Process(run).ppid() in supervisors:
                    history.note("sigstop", training=run)

    # -- connections

    @contextmanager
    def _slow(self, cell: Cell, chance: random.Random) -> Generator[None]:
        delay_s = chance.uniform(0.3, 2.0) if cell.held != "database" else chance.uniform(0.02, 0.15)
        yield from self._on_link(cell, chance, lambda proxy: setattr(proxy, "delay_s", delay_s))

    @contextmanager
    def _hole(self, cell: Cell, chance: random.Random) -> Generator[None]:
        yield from self._on_link(cell, chance, lambda proxy: setattr(proxy, "is_hole", True))

    @contextmanager
    def _half_open(self, cell: Cell, chance: random.Random) -> Generator[None]:
        yield from self._on_link(cell, chance, Proxy.lose_connections)

    def _on_link(self, cell: Cell, chance: random.Random, change: Callable[[Proxy], Any]) -> Generator[None]:
        if cell.part == "client":
            proxy = self._rig.links["client", "api"]
        else:
            name = self._name(cell, chance)
            proxy = self._rig.links[name, cell.held]
        with ExitStack() as held:
            self._hold(cell, held)
            if cell.part == "supervisor" and cell.fault != "slow":
                self._note_fenced(self._rig.pool_children(name))
            change(proxy)
            try:
                yield
            finally:
                proxy.mend()

    def _hold(self, cell: Cell, held: ExitStack) -> None:
        """Has the part do what the fault shall interrupt."""
        if cell.part in _TASKS:
            self._noisy.once(_TASKS[cell.part])
        elif cell.part in ("client", "API") and cell.held in _OPENED:
            held.enter_context(self._noisy.open(_OPENED[cell.held], 8))
        elif cell.part in ("dispatcher", "broker", "train worker", "fork server"):
            self._noisy.once("submit")

    # -- disks, memory, load

    @contextmanager
    def _full_disk(self, cell: Cell, chance: random.Random) -> Generator[None]:
        if not self._rig.has_disks:
            raise NotHeld
        places = {"upload": "data/datasets", "tables": "postgres" if self._rig.postgres else "data"}
        self._disk_needed(cell)
        with self._rig.full_disk(places.get(cell.held, "data/runs")), ExitStack() as load:
            if cell.held == "upload":
                load.enter_context(self._noisy.flood("upload", 2, 0.2))
            yield

    def _disk_needed(self, cell: Cell) -> None:
        if cell.part == "exports worker":
            self._noisy.once("merge")
        elif cell.part == "supervisor":
            self._noisy.once("submit")

    @contextmanager
    def _slow_disk(self, cell: Cell, chance: random.Random) -> Generator[None]:
        rig = self._rig
        if cell.part == "database" and rig.postgres:
            with self._slow_log():
                yield
            return
        kind, wait_s = ("commit_s", _SLOW_COMMIT_S) if cell.held in ("transaction", "log") else ("sync_s", _SLOW_SYNC_S)
        # A run reads the orders of its worker's role. A database in a file is as slow for every process.
        service = "" if cell.part == "database" else _SERVICES.get(cell.part, "train-worker")
        self._disk_needed(cell)
        with ExitStack() as load:
            rig.order(kind, dict.fromkeys(rig.names(service), wait_s))
            if cell.held == "upload":
                load.enter_context(self._noisy.flood("upload", 2, 0.2))
            try:
                yield
            finally:
                rig.order(kind, {})

    @contextmanager
    def _slow_log(self) -> Generator[None]:
        """PostgreSQL waits before it writes its log at each commit, a tenth of a second at most."""
        assert self._rig.postgres
        import psycopg

        def setting(*statements: str) -> None:
            with psycopg.connect(self._rig.postgres.url, autocommit=True, connect_timeout=5) as connection:
                for statement in (*statements, "SELECT pg_reload_conf()"):
                    connection.execute(statement.encode())

        try:
            setting("ALTER SYSTEM SET commit_delay = 100000", "ALTER SYSTEM SET commit_siblings = 0")
        except psycopg.Error as error:
            raise NotHeld from error
        try:
            yield
        finally:
            with suppress(psycopg.Error):
                setting("ALTER SYSTEM RESET commit_delay", "ALTER SYSTEM RESET commit_siblings")

    @contextmanager
    def _memory(self, cell: Cell, chance: random.Random) -> Generator[None]:
        with ExitStack() as held:
            self._hold(cell, held)
            if cell.part in ("run", "fork server"):
                pids = self._pids(cell, chance)
            elif cell.part == "supervisor":
                pids = [pid for child in self._pids(cell, chance) for pid in (child, *_below(child))]
            else:
                pids = self._rig.tree(self._name(cell, chance))
            with self._rig.little_memory(pids, _MEMORY_BYTES):
                yield

    @contextmanager
    def _load(self, cell: Cell, chance: random.Random) -> Generator[None]:
        kind, threads, pause_s = _LOADS[cell.held]
        with self._noisy.flood(kind, threads, pause_s):
            yield


def _below(pid: int) -> list[int]:
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def _choice(chance: random.Random, items: list[int]) -> int:
    if not items:
        raise NotHeld
    return chance.choice(items)


def _within(look: Callable[[], Any], seconds: float = _HELD_WITHIN_S, every_s: float = 0.05) -> Any:
    """The first true value, or the last one after `seconds`."""
    ends_at = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < ends_at:
        time.sleep(every_s)
    return found
