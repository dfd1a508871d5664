"""Death at a chosen point: before or after the n-th commit, rename or publish of a process, as a power cut would have it.

The point is named `<kind>:<n>:<before|after>`. A process that has fewer points lives. `renew:<n>:freeze` stops a process
after it renewed a lease and before it commits, until somebody lets it go on. With `count` instead of a point
nothing happens, and the points that were passed are counted in `passed`.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

KINDS = ("commit", "rename", "publish")
passed: Counter[str] = Counter()


def install(point: str) -> None:
    """Makes this process die at the point, by SIGKILL."""
    passed.clear()
    kind, _, rest = point.partition(":")
    number, _, side = rest.partition(":")

    def around(what: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            passed[what] += 1
            dies = what == kind and passed[what] == int(number)
            if dies and side == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = action(*args, **kwargs)
            if dies and side == "freeze":
                # To this thread: by the time that a signal to the process has stopped every thread, it would have committed.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            elif dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    os.rename = around("rename", os.rename)
    os.replace = around("rename", os.replace)
    _wrap_late("jobs.queue", lambda module: _wrap(module.CeleryQueue, "_send", around, "publish"))
    _wrap_late("jobs.repository.jobs", lambda module: _wrap(module, "renew", around, "renew"))
    _wrap_late("sqlalchemy.engine.default", lambda module: _wrap(module.DefaultDialect, "do_commit", around, "commit"))


def _wrap(owner: Any, name: str, around: Callable[[str, Any], Any], what: str) -> None:
    setattr(owner, name, around(what, getattr(owner, name)))


def _wrap_late(name: str, wrap: Callable[[Any], None]) -> None:
    """Wraps something in a module now, or when it is imported: what dies must not load what it would not."""
    import importlib
    import importlib.abc
    import sys

    if name in sys.modules:
        wrap(sys.modules[name])
        return

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
            if fullname != name:
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(fullname)
            assert spec
            assert spec.loader
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                wrap(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    import importlib.util

    sys.meta_path.insert(0, Finder())
