"""Checkpoints are whole or absent."""

from pathlib import Path

import pytest

from trainer_core.checkpoints import MANIFEST, newest_verified, prune, publish, verified_step


def make(run_dir: Path, step: int) -> Path:
    staged = run_dir / ".staging-1"
    (staged / "inner").mkdir(parents=True)
    (staged / "weights").write_bytes(bytes([step]) * 100)
    (staged / "inner" / "state").write_text(str(step))
    return publish(staged, run_dir, step)


def test_a_published_checkpoint_verifies(tmp_path: Path) -> None:
    assert verified_step(make(tmp_path, 5)) == 5
    assert not list(tmp_path.glob(".staging-*"))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "manifest", "no manifest"])
def test_a_harmed_checkpoint_is_never_chosen(tmp_path: Path, harm: str) -> None:
    good, bad = make(tmp_path, 5), make(tmp_path, 7)
    weights = bad / "weights"
    if harm == "flip":
        weights.write_bytes(b"x" + weights.read_bytes()[1:])
    elif harm == "cut":
        weights.write_bytes(weights.read_bytes()[:50])
    elif harm == "remove":
        weights.unlink()
    elif harm == "manifest":
        (bad / MANIFEST).write_text("{")
    else:
        (bad / MANIFEST).unlink()
    assert newest_verified([tmp_path]) == good


def test_the_highest_step_of_all_attempts_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "attempt-1", tmp_path / "attempt-2"
    best = make(first, 10)
    make(second, 9)
    assert newest_verified([first, second, tmp_path / "absent"]) == best
    assert newest_verified([]) is None


def test_pruning_keeps_the_newest_and_removes_leftovers(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        make(tmp_path, step)
    (tmp_path / ".staging-3-1").mkdir()
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]
