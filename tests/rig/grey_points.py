"""Slow disks and frozen transactions: orders from a file, which every process of a rig obeys while it runs.

A disk cannot be slowed down from outside without a device of one's own, so the calls that wait for it are: fsync, rename
and, on SQLite, commit. The file holds JSON: `{"sync_s": {role: s}, "commit_s": {role: s}, "freeze": {role: token}}`, each
by the role of a process, which its environment names. `freeze` stops a process in a transaction that has written, before it
commits: one process for each token, which leaves its number in the file `<orders>.<token>`.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rig.failpoints import _wrap_late

ORDERS = "TAFDIL_TEST_ORDERS"
ROLE = "TAFDIL_TEST_ROLE"
_WRITES = ("INSERT", "UPDATE", "DELETE")


class Orders:
    """The orders for this process, read again whenever the file has changed."""

    def __init__(self, path: str, role: str) -> None:
        self._path, self._role = path, role
        self._seen: tuple[int, int] | None = None
        self._given: dict[str, Any] = {}

    def get(self, kind: str) -> Any:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        stamp = found.st_mtime_ns, found.st_ino
        if stamp != self._seen:
            self._seen = stamp
            self._given = json.loads(Path(self._path).read_text(encoding="utf-8"))
        return self._given.get(kind, {}).get(self._role)

    def is_first(self, token: str) -> bool:
        """Whether nobody has obeyed this token yet."""
        try:
            descriptor = os.open(f"{self._path}.{token}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.write(descriptor, str(os.getpid()).encode())
        os.close(descriptor)
        return True


def give(path: Path, orders: dict[str, dict[str, Any]]) -> None:
    """Replaces the orders at once."""
    staged = path.with_name(f"{path.name}.new")
    staged.write_text(json.dumps(orders), encoding="utf-8")
    staged.replace(path)


def install(path: str, role: str) -> None:
    """Makes this process obey."""
    orders, here = Orders(path, role), threading.local()

    def slowly(action: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            time.sleep(orders.get("sync_s") or 0.0)
            return action(*args, **kwargs)

        return wrapped

    def noting(execute: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any, cursor: Any, statement: str, *args: Any, **kwargs: Any) -> Any:
            here.has_written = getattr(here, "has_written", False) or statement.lstrip().startswith(_WRITES)
            return execute(self, cursor, statement, *args, **kwargs)

        return wrapped

    def committing(commit: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any, connection: Any) -> Any:
            if getattr(here, "has_written", False):
                here.has_written = False
                if (token := orders.get("freeze")) and orders.is_first(token):
                    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
                time.sleep(orders.get("commit_s") or 0.0)
            return commit(self, connection)

        return wrapped

    def late(module: Any) -> None:
        dialect = module.DefaultDialect
        dialect.do_execute = noting(dialect.do_execute)
        dialect.do_commit = committing(dialect.do_commit)

    os.fsync, os.rename, os.replace = slowly(os.fsync), slowly(os.rename), slowly(os.replace)
    _wrap_late("sqlalchemy.engine.default", late)
