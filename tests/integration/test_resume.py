"""A training that was cut anywhere ends as one that was not: weights, optimizer and metric history, to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import RecordingObserver
from tests.forking import ran
from tests.training import METHODS, config, first_of_each_trainer, make_model, some_rows, soon, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.checkpoints import newest_verified
from trainer_core.comparison import load_pair
from trainer_core.errors import DiskFull, SpecInvalid, Stopped

STEPS_AN_EPOCH = 3
STEPS = 3 * STEPS_AN_EPOCH
# 24 rows in batches of 4, two an optimizer step: three steps an epoch.
ROWS = 24


class Cut(Exception):
    """Stands for a kill: nothing of the trainer runs after it."""


def settings(method: str, folder: Path, **fields: Any) -> Any:
    base = {
        "model_name": str(folder / "model"),
        "dataset_path": str(folder / "rows.jsonl"),
        "eval_dataset_path": str(folder / "held_out.jsonl"),
        "max_steps": None,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "eval_steps": 4,
        # Cuts fall between two log entries as well, whose averages span the cut.
        "logging_steps": 4,
        "save_steps": 2,
        "sample_max_length": 8,
    }
    return config(method, folder / "out", **{**base, **fields})


def end_of(trainer: PreferenceTrainer) -> dict[str, Any]:
    """What must be equal, bit by bit."""
    run_dir = Path(trainer.config.output_dir)
    optimizer = torch.load(run_dir / f"checkpoint-{trainer.trainer.state.global_step}" / "optimizer.pt", weights_only=True)
    history = [
        {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
        for entry in trainer.trainer.state.log_history
        if "train_runtime" not in entry
    ]
    weights = next(
        run_dir / name for name in ("adapter_model.safetensors", "model.safetensors") if (run_dir / name).exists()
    )
    return {"weights": load_file(weights), "optimizer": optimizer["state"], "history": history}


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for name, value in expected.items():
            assert_same(found[name], value, f"{place}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for i, value in enumerate(expected):
            assert_same(found[i], value, f"{place}[{i}]")
    else:
        assert found == expected, place


@pytest.fixture(scope="module", params=METHODS)
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    """A method, its folder, and the end of a training that nothing cut."""
    folder = tmp_path_factory.mktemp(request.param)
    make_model(folder / "model")
    rows = some_rows(request.param, ROWS + 8)
    write_rows(folder / "rows.jsonl", rows[:ROWS])
    write_rows(folder / "held_out.jsonl", rows[ROWS:])
    trainer = PreferenceTrainer(settings(request.param, folder), observer=RecordingObserver())
    trainer.train()
    assert trainer.trainer.state.global_step == STEPS
    expected = end_of(trainer)
    (folder / "out").rename(folder / "whole")
    yield request.param, folder, expected
    shutil.rmtree(folder)


def go_on(method: str, folder: Path, expected: Any, step: int) -> None:
    """Resumes as the service does, and compares the end."""
    checkpoint = newest_verified([folder / "out"])
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step}"
    trainer = PreferenceTrainer(settings(method, folder), observer=RecordingObserver())
    trainer.train(resume_from_checkpoint=checkpoint)
    assert_same(end_of(trainer), expected)
    shutil.rmtree(folder / "out")


def test_stopped_at_steps(unbroken: Any) -> None:
    """In the middle of an epoch, at its edge, in the second one and at its edge; each run resumes where the last stopped."""
    method, folder, expected = unbroken
    checkpoint = None
    for step in (2, STEPS_AN_EPOCH, STEPS_AN_EPOCH + 2, 2 * STEPS_AN_EPOCH):
        trainer = PreferenceTrainer(settings(method, folder), observer=RecordingObserver(stop_after=step))
        with pytest.raises(Stopped):
            trainer.train(resume_from_checkpoint=checkpoint)
        checkpoint = newest_verified([folder / "out"])
        assert checkpoint is not None
        assert checkpoint.name == f"checkpoint-{step}"
    go_on(method, folder, expected, step)


def test_cut_within_gradient_accumulation(unbroken: Any) -> None:
    """Between the two micro-batches of step 6: the gradient of the first is lost, and computed again."""
    method, folder, expected = unbroken
    trainer = PreferenceTrainer(settings(method, folder), observer=RecordingObserver())
    inner = trainer.prepare()
    whole = inner.training_step
    calls = 0

    def cut(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5 * 2 + 2:
            raise Cut
        return whole(*args, **kwargs)

    inner.training_step = cut
    with pytest.raises(Cut):
        trainer.train()
    go_on(method, folder, expected, 4)


@pytest.mark.parametrize("place", ["_sha256", "_sync"])
def test_killed_during_a_save(unbroken: Any, place: str, tmp_path: Path) -> None:
    """SIGKILL while the checkpoint of step 6 is hashed, or synced: its half is never chosen, and removed later."""
    method, folder, expected = unbroken
    command = [sys.executable, "-m", "tests.rig.cut_save", method, str(folder), place]
    said = tmp_path / "said"
    with said.open("wb") as output:
        code = ran(command, {**os.environ}, output, trains=True)
    assert code == -signal.SIGKILL, said.read_text(encoding="utf-8")
    assert list((folder / "out").glob(".staging-6-*"))
    go_on(method, folder, expected, 4)
    assert not list(folder.glob("out/.staging-*"))


def test_resumed_after_the_last_step(unbroken: Any) -> None:
    method, folder, expected = unbroken
    shutil.copytree(folder / "whole", folder / "out")
    go_on(method, folder, expected, STEPS)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_model(tmp_path / "model")
    rows = some_rows("ipo", ROWS + 8)
    write_rows(tmp_path / "rows.jsonl", rows[:ROWS])
    write_rows(tmp_path / "held_out.jsonl", rows[ROWS:])
    return tmp_path


def resumed(method: str, place: Path, checkpoint: Path, **fields: Any) -> Any:
    trainer = PreferenceTrainer(settings(method, place, **fields), observer=RecordingObserver())
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def test_a_checkpoint_of_another_training_is_refused(place: Path) -> None:
    PreferenceTrainer(settings("ipo", place, max_steps=4), observer=RecordingObserver()).train()
    kept = place / "kept"
    shutil.copytree(place / "out", kept)
    with pytest.raises(SpecInvalid, match="a different method: it has ipo, and this run has cpo"):
        resumed("cpo", place, kept / "checkpoint-4")
    with pytest.raises(SpecInvalid, match="a different batch size: it has 4, and this run has 2"):
        resumed("ipo", place, kept / "checkpoint-4", per_device_train_batch_size=2)
    for name, fields in (
        ("learning rate", {"learning_rate": 1e-7}),
        ("schedule", {"lr_scheduler_type": "cosine"}),
        ("beta", {"beta": 5.0}),
        ("label_smoothing", {"label_smoothing": 0.1}),
    ):
        with pytest.raises(SpecInvalid, match=f"a different {name}: "):
            resumed("ipo", place, kept / "checkpoint-4", **fields)
    with pytest.raises(SpecInvalid, match="checkpoint-9 is missing"):
        resumed("ipo", place, kept / "checkpoint-9")
    rows = some_rows("ipo", ROWS)
    write_rows(place / "rows.jsonl", [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows])
    with pytest.raises(SpecInvalid, match="a different data plan"):
        resumed("ipo", place, kept / "checkpoint-4")
    weights = kept / "checkpoint-4" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(SpecInvalid, match="incomplete, or was changed"):
        resumed("ipo", place, kept / "checkpoint-4")


def test_a_longer_plan_goes_on(place: Path) -> None:
    PreferenceTrainer(settings("ipo", place, max_steps=4), observer=RecordingObserver()).train()
    longer = resumed("ipo", place, place / "out" / "checkpoint-4", max_steps=6)
    assert longer.trainer.state.global_step == 6
    assert "planned for 4 steps, but this run has 6" in longer.observer.warnings["length_changed"]
    shorter = resumed("ipo", place, place / "out" / "checkpoint-6", max_steps=2)
    assert shorter.trainer.state.global_step == 6, "what is trained stays trained"


def test_an_earlier_training_in_the_same_place_is_replaced(place: Path) -> None:
    """Its higher steps would outlive the new checkpoints, and be resumed from."""
    PreferenceTrainer(settings("ipo", place), observer=RecordingObserver()).train()
    observer = RecordingObserver(stop_after=2)
    with pytest.raises(Stopped):
        PreferenceTrainer(settings("cpo", place, seed=7), observer=observer).train()
    assert "checkpoint-8" in observer.warnings["output_replaced"]
    assert sorted(path.name for path in (place / "out").iterdir() if "checkpoint" in path.name) == ["checkpoint-2"]
    resumed("cpo", place, place / "out" / "checkpoint-2", seed=7)
    assert load_pair(place / "out", lambda name: name)[0] == "cpo"


def test_a_stop_that_was_decided_stays_decided(place: Path) -> None:
    """The checkpoint of the stopping evaluation itself: nothing is trained after it."""
    fields = {"early_stopping_patience": 1, "eval_steps": 1, "save_steps": 1, "learning_rate": 0.5, "save_total_limit": 20}
    whole = PreferenceTrainer(settings("ipo", place, **fields), observer=RecordingObserver())
    whole.train()
    last = whole.trainer.state.global_step
    assert last < STEPS
    again = resumed("ipo", place, place / "out" / f"checkpoint-{last}", **fields)
    assert again.metadata()["early_stopping"] == whole.metadata()["early_stopping"]
    assert again.metadata()["weights_sha256"] == whole.metadata()["weights_sha256"]


def test_an_evaluation_of_ones_own_is_no_point_of_the_history(place: Path) -> None:
    trainer = PreferenceTrainer(settings("ipo", place, early_stopping_patience=5), observer=RecordingObserver())
    trainer.train()
    before = [dict(entry) for entry in trainer.trainer.state.log_history]
    stopping = trainer.metadata()["early_stopping"]
    trainer.evaluate_model(some_rows("ipo", 4))
    assert trainer.trainer.state.log_history == before
    assert trainer.metadata()["early_stopping"] == stopping


@pytest.mark.parametrize("method", soon(first_of_each_trainer()))
def test_full_fine_tuning_resumes_exactly(method: str, tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    rows = some_rows(method, ROWS + 8)
    write_rows(tmp_path / "rows.jsonl", rows[:ROWS])
    write_rows(tmp_path / "held_out.jsonl", rows[ROWS:])
    fields = {"use_lora": False, "learning_rate": 1e-4, "gradient_checkpointing": True}
    whole = PreferenceTrainer(settings(method, tmp_path, **fields), observer=RecordingObserver())
    whole.train()
    expected = end_of(whole)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(Stopped):
        PreferenceTrainer(settings(method, tmp_path, **fields), observer=RecordingObserver(stop_after=5)).train()
    resumed = PreferenceTrainer(settings(method, tmp_path, **fields), observer=RecordingObserver())
    resumed.train(resume_from_checkpoint=tmp_path / "out" / "checkpoint-5")
    assert_same(end_of(resumed), expected)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A small file system of its own, with room for one checkpoint and a half: the second one finds no older to prune."""
    make_model(tmp_path / "model")
    rows = some_rows("ipo", ROWS + 8)
    write_rows(tmp_path / "rows.jsonl", rows[:ROWS])
    write_rows(tmp_path / "held_out.jsonl", rows[ROWS:])
    (tmp_path / "out").mkdir()
    probe = "mount -t tmpfs -o size=1m tmpfs " + str(tmp_path / "out")
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*namespace, probe], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no file system of one's own (unshare --user --mount)")
    size = PreferenceTrainer(settings("ipo", tmp_path, output_dir=str(tmp_path / "probe"), max_steps=2))
    size.train()
    checkpoint_bytes = sum(p.stat().st_size for p in (tmp_path / "probe" / "checkpoint-2").rglob("*"))
    command = [sys.executable, "-m", "tests.rig.small_disk", str(tmp_path), str(int(checkpoint_bytes * 1.5))]
    said = tmp_path / "said"
    with said.open("wb") as output:
        ran(command, {**os.environ}, output, trains=True)
    assert "the disk is full: the checkpoint at step 4" in said.read_text(encoding="utf-8")
    kept = newest_verified([tmp_path / "kept"])
    assert kept is not None
    assert kept.name == "checkpoint-2"
    assert json.loads((kept / "trainer_state.json").read_text())["global_step"] == 2
    assert not list((tmp_path / "kept").glob(".staging-*"))
    assert DiskFull.code == "disk_full"
