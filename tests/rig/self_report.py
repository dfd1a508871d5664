"""A run that reports what it finds of itself, and then does what the file `do` in its directory says."""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from worker.parent_death import die_with_parent


def preload() -> None:
    """As the server's environment says: a thread, or an end."""
    wish = os.environ.get("TAFDIL_TEST_PRELOAD")
    if wish == "thread":
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    elif wish == "numpy":
        import numpy  # noqa: F401  # pyright: ignore[reportUnusedImport]
    elif wish == "exit":
        sys.exit(3)


def about_this_process() -> dict[str, Any]:
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own
    handlers = {number.name: str(signal.getsignal(number)) for number in signal.Signals if number.name != "SIGRTMIN"}
    numpy = sys.modules.get("numpy")
    return {
        "arguments": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "command": Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode().split("\0"),
        "parent": os.getppid(),
        "leads_session": os.getsid(0) == os.getpgid(0) == os.getpid(),
        "descriptors": descriptors,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "umask": os.umask(0o22),
        "oom_score": Path("/proc/self/oom_score_adj").read_text(encoding="ascii").strip(),
        "cgroup": Path("/proc/self/cgroup").read_text(encoding="ascii"),
        "handlers": handlers,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "threads": len(os.listdir("/proc/self/task")),
        "drawn": [random.random(), float(numpy.random.random()) if numpy else None],
    }


def main() -> int:
    folder, descriptor, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    with os.fdopen(descriptor, "w") as reports:
        reports.write(json.dumps({"type": "self", **about_this_process()}) + "\n")
        reports.flush()
        wish = (folder / "do").read_text(encoding="utf-8") if (folder / "do").exists() else "leave"
        print(f"it does: {wish}")
        if wish == "sleep":
            time.sleep(600)
        elif wish == "leave children":
            for leaves_session in (False, True):
                if os.fork() == 0:
                    if leaves_session:
                        os.setpgid(0, 0)
                    time.sleep(600)
        elif wish == "raise":
            raise RuntimeError("as asked")
        elif wish == "read":
            print(sys.stdin.readline().strip() or sys.stdin.readline().strip())
    return 7 if wish == "7" else 0


if __name__ == "__main__":
    sys.exit(main())
