"""Answers that misbehave as their request says: `python -m worker.answering tests.rig.answers`."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.states import TaskKind
from trainer_core.errors import SpecInvalid
from trainer_core.wording import say
from worker.desk import Answer, Desk

_kept: list[bytes] = []


def _answer(desk: Desk) -> dict[str, Any]:
    request = desk.task.request
    if begun := request.get("begun"):
        with Path(begun).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {desk.task.attempt}\n")
    for text in request.get("partials", []):
        desk.tell({"text": text})
    if request.get("stops", 0) >= desk.task.attempt:
        os.kill(os.getpid(), signal.SIGSTOP)
    if mib := request.get("takes_mib"):
        for _ in range(mib // 16):
            _kept.append(b"x" * 2**24)
        # Long enough to be measured.
        time.sleep(0.5)
    if wait := request.get("until"):
        while not Path(wait).exists():
            time.sleep(0.02)
    if request.get("dies", 0) >= desk.task.attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    while request.get("loops"):
        pass
    if request.get("refuses"):
        raise SpecInvalid(say("value.missing"))
    if "raises" in request:
        raise RuntimeError(request["raises"])
    return {"pid": os.getpid(), "attempt": desk.task.attempt, "text": request.get("text")}


ANSWERS: Mapping[TaskKind, Answer] = dict.fromkeys(TaskKind, _answer)
