"""The states of tasks that requests wait for: all waiting requests of this process share one query."""

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from fastapi.concurrency import run_in_threadpool

from jobs.database import Database
from jobs.repository import task_states
from jobs.states import TaskState


class TaskStates:
    """Reads states for whoever waits, as often as news may be missed, however many wait."""

    def __init__(self) -> None:
        self._watched: Counter[str] = Counter()
        self._found: dict[str, TaskState] = {}
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None

    @contextmanager
    def watched(self, task_id: str) -> Generator[None]:
        """Includes a task in the queries while a request waits for it."""
        self._watched[task_id] += 1
        try:
            yield
        finally:
            self._watched[task_id] -= 1
            if not self._watched[task_id]:
                del self._watched[task_id]

    async def of(self, database: Database, task_id: str, at_most_s: float) -> TaskState | None:
        """A watched task's state, read at most `at_most_s` seconds ago. None: the task was deleted."""
        loop = asyncio.get_running_loop()
        wanted_at = loop.time() - at_most_s
        while self._read_at < wanted_at or task_id not in self._found:
            asked_at = loop.time()
            if self._reading is None:
                self._reading = asyncio.create_task(self._read(database))
            # A request that ends must not end the others' query.
            await asyncio.shield(self._reading)
            # Asked for before a query that was under way: the query may have missed it.
            if self._read_at >= asked_at:
                break
        return self._found.get(task_id)

    async def _read(self, database: Database) -> None:
        loop = asyncio.get_running_loop()
        try:
            # What is stored after this instant may be missing.
            began_at, ids = loop.time(), list(self._watched)
            self._found = await run_in_threadpool(_states, database, ids)
            self._read_at = began_at
        finally:
            self._reading = None


def _states(database: Database, ids: list[str]) -> dict[str, TaskState]:
    with database.reading() as session:
        return task_states.of(session, ids)
