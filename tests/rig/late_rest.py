"""Answers of a process that notes the end of a task only when the next one has arrived."""

import sys
import time
from typing import Any

from tests.rig.answers import ANSWERS

__all__ = ["ANSWERS", "preload"]


def preload() -> None:
    reports: Any = sys.modules["__main__"].Reports  # type: ignore[attr-defined]
    be_busy = reports.be_busy
    # What has arrived is known to the caller alone: the next task may be there before the end of this one is noted.
    inbox = sys._getframe(1).f_locals["inbox"]

    def late(self: Any, is_busy: bool) -> None:
        while not is_busy and inbox.empty():
            time.sleep(0.01)
        be_busy(self, is_busy)

    reports.be_busy = late
