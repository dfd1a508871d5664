"""A save that is killed at any of its file operations leaves the checkpoint before it, or the new one, whole."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import WEIGHTS, write_parts
from trainer_core.checkpoints import newest_verified, prune, publish, verified_step

AUDITED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"}


def save(run_dir: Path, step: int) -> None:
    """A checkpoint as the trainer writes it: aside, file by file, then published; older ones are pruned."""
    staged = run_dir / f".staging-{step}" / f"checkpoint-{step}"
    write_parts(staged, lambda: os.urandom(2000))
    publish(staged, run_dir, step)
    prune(run_dir, 2)


def die_at(number: int, run_dir: Path) -> bool:
    """Saves in a process that is killed at its n-th file operation. False: it had fewer, and lived."""
    pid = os.fork()
    if pid == 0:
        done = 0

        def count(*_: Any) -> None:
            nonlocal done
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sync = os.fsync
        os.fsync = lambda handle: (count(), sync(handle))[1]
        sys.addaudithook(lambda event, _: count() if event in AUDITED else None)
        try:
            save(run_dir, 40)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_save_that_is_killed_anywhere(tmp_path: Path) -> None:
    number, found = 0, []
    while True:
        number += 1
        run_dir = tmp_path / str(number)
        for step in (10, 20, 30):
            save(run_dir, step)
        died = die_at(number, run_dir)
        newest = newest_verified([run_dir])
        assert newest
        step = verified_step(newest)
        assert step in (30, 40)
        found.append(step)
        for path in run_dir.glob("checkpoint-*"):
            # An older one that was being removed may be half; it is never the newest, and never verifies.
            assert verified_step(path) is not None or path.name in ("checkpoint-10", "checkpoint-20", "checkpoint-30")
        save(run_dir, 50)
        assert verified_step(run_dir / "checkpoint-50") == 50
        assert not list(run_dir.glob(".staging-40*")), "what was left is cleared by the next save"
        if not died:
            break
    assert number > 20
    assert found == sorted(found), "once the new one is there it stays"
    assert {30, 40} == set(found)


@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_never_chosen(tmp_path: Path, harm: str) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    victim = tmp_path / "checkpoint-20"
    weights = victim / WEIGHTS
    match harm:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "changed":
            weights.write_bytes(b"x" + weights.read_bytes()[1:])
        case "missing":
            weights.unlink()
        case "no manifest":
            (victim / "manifest.json").unlink()
        case _:
            (victim / "manifest.json").write_text(json.dumps({}))
    newest = newest_verified([tmp_path])
    assert newest == tmp_path / "checkpoint-10"
