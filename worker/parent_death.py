"""Makes a process end with its parent."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# When memory runs out, the kernel should kill a run rather than its supervisor, and a task, which is soon done again,
# before a run of much the same size. A thousandth is a thousandth of the machine's memory.
RUN_OOM_SCORE, TASK_OOM_SCORE = 500, 900


def die_with_parent(parent: int, oom_score: int = RUN_OOM_SCORE) -> None:
    """Asks the kernel to end this process when its parent ends; exits immediately if it already has.

    Args:
        oom_score: what the kernel adds to this process's share of the memory, in thousandths, when it looks for one to kill.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(oom_score), encoding="ascii")
    if os.getppid() != parent:
        os._exit(1)
