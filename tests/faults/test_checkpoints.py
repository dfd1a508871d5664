"""A save that is killed at any of its file operations leaves the checkpoint before it, or the new one, whole."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import PARTS, WEIGHTS, write_parts
from tests.training import config
from trainer_core import PreferenceTrainer
from trainer_core.checkpoints import MANIFEST, newest_verified, prune, publish, verified_step
from trainer_core.errors import SpecInvalid

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
            first, *others = weights.read_bytes()
            weights.write_bytes(bytes([first ^ 1, *others]))
        case "missing":
            weights.unlink()
        case "no manifest":
            (victim / "manifest.json").unlink()
        case _:
            (victim / "manifest.json").write_text(json.dumps({}))
    newest = newest_verified([tmp_path])
    assert newest == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_without_one_of_its_parts_is_not_published(tmp_path: Path, part: str) -> None:
    staged = tmp_path / ".staging-1"
    write_parts(staged, lambda: b"x")
    (staged / part).unlink()
    name = "its weights" if part == WEIGHTS else part
    with pytest.raises(RuntimeError, match=rf"step 3 was not published because these files are missing: {name}\. "):
        publish(staged, tmp_path, 3)
    assert not (tmp_path / "checkpoint-3").exists()


@pytest.mark.parametrize("part", PARTS)
def test_a_manifest_that_lists_too_little_is_not_believed(tmp_path: Path, part: str) -> None:
    """As several processes wrote that took away each other's files."""
    for step in (5, 7):
        save(tmp_path, step)
    good, bad = tmp_path / "checkpoint-5", tmp_path / "checkpoint-7"
    (bad / part).unlink()
    manifest = json.loads((bad / MANIFEST).read_text())
    del manifest["files"][part]
    (bad / MANIFEST).write_text(json.dumps(manifest))
    assert verified_step(bad) is None
    assert newest_verified([tmp_path]) == good


def train_as(rank: int, output_dir: Path, meeting: Path | None, said: Any) -> None:
    """A process of two; with a meeting they find each other first, and nothing in the environment says so."""
    if meeting:
        torch.distributed.init_process_group("gloo", f"file://{meeting}", world_size=2, rank=rank)
    else:
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        PreferenceTrainer(config("ipo", output_dir, save_steps=1)).train()
    except SpecInvalid as error:
        said.put(str(error))


@pytest.mark.parametrize(
    ("meets", "reason"), [(False, "WORLD_SIZE is 2; start it"), (True, "torch.distributed has 2; start it")]
)
def test_two_processes_write_nothing(tmp_path: Path, meets: bool, reason: str) -> None:
    started = multiprocessing.get_context("fork")
    said = started.Queue()
    meeting = tmp_path / "meeting" if meets else None
    output_dir = tmp_path / "results" / "out"
    processes = [started.Process(target=train_as, args=(rank, output_dir, meeting, said)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for _ in processes:
        assert f"a run uses one process, but {reason}" in said.get(timeout=60)
    for process in processes:
        process.join(60)
    assert not output_dir.parent.exists()
