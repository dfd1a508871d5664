"""Checkpoints are whole or absent."""

import json
import tarfile
from pathlib import Path

import pytest

from tests.checkpoints import WEIGHTS, write_parts
from trainer_core.checkpoints import MANIFEST, newest_verified, prune, publish, verified_step

ROOT = Path(__file__).resolve().parents[2]


def make(run_dir: Path, step: int) -> Path:
    staged = run_dir / ".staging-1"
    write_parts(staged, lambda: bytes([step]) * 100)
    (staged / "ref").mkdir()
    (staged / "ref" / "adapter_model.safetensors").write_text(str(step))
    return publish(staged, run_dir, step)


def test_a_published_checkpoint_verifies(tmp_path: Path) -> None:
    assert verified_step(make(tmp_path, 5)) == 5
    assert not list(tmp_path.glob(".staging-*"))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "manifest", "no manifest"])
def test_a_harmed_checkpoint_is_never_chosen(tmp_path: Path, harm: str) -> None:
    good, bad = make(tmp_path, 5), make(tmp_path, 7)
    weights = bad / WEIGHTS
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


def test_weights_may_be_an_adapter_or_all_shards_of_an_index(tmp_path: Path) -> None:
    for step, name in ((1, "adapter_model.safetensors"), (2, "model.safetensors.index.json")):
        staged = tmp_path / ".staging-1"
        write_parts(staged, lambda: b"x")
        (staged / WEIGHTS).rename(staged / name)
        if name.endswith("json"):
            shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
            (staged / name).write_text(json.dumps({"weight_map": shards}))
            (staged / shards["a"]).write_bytes(b"x")
            with pytest.raises(RuntimeError, match="files are missing: model-00002-of-00002"):
                publish(staged, tmp_path, step)
            (staged / shards["b"]).write_bytes(b"x")
        assert verified_step(publish(staged, tmp_path, step)) == step


def test_checkpoints_of_the_first_version_are_whole(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "upgrades" / "data_0_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    kept = list(tmp_path.glob("data/runs/*/attempt-*/output/checkpoint-*"))
    assert len(kept) >= 3
    assert [path.name for path in kept] == [f"checkpoint-{verified_step(path)}" for path in kept]


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
