"""Resuming from whatever is newest, and when the metadata says that a training was completed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import RecordingObserver
from tests.training import config, small_model, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.errors import SpecInvalid, Stopped


def settings(folder: Path, **fields: Any) -> Any:
    rows = write_rows(folder / "rows.jsonl", some_rows("ipo", 16))
    base = {
        "model_name": small_model(),
        "dataset_path": rows,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 1,
        "save_total_limit": 5,
    }
    return config("ipo", folder / "out", **{**base, **fields})


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ipo_metadata.json").read_text(encoding="utf-8"))


def losses(trainer: PreferenceTrainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.trainer.state.log_history if "loss" in entry}


def test_true_resumes_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    cut = PreferenceTrainer(settings(tmp_path), observer=RecordingObserver(stop_after=3))
    with pytest.raises(Stopped):
        cut.train(resume_from_checkpoint=False)
    cut.save_model(str(tmp_path / "stopped"))
    assert "training_completed_at" not in metadata(tmp_path / "stopped")
    (tmp_path / "out" / "checkpoint-3" / "optimizer.pt").write_bytes(b"damaged")
    resumed = PreferenceTrainer(settings(tmp_path), observer=RecordingObserver())
    resumed.train(resume_from_checkpoint=True)
    whole = PreferenceTrainer(settings(tmp_path, output_dir=str(tmp_path / "whole")), observer=RecordingObserver())
    whole.train()
    assert losses(resumed) == losses(whole)
    assert resumed._watcher.steps == 2, "steps 3 and 4: the checkpoint of step 3 is damaged"
    assert metadata(tmp_path / "out")["weights_sha256"] == metadata(tmp_path / "whole")["weights_sha256"]


def test_true_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(settings(tmp_path), observer=RecordingObserver())
    with pytest.raises(SpecInvalid, match=r"no complete checkpoint in .* to resume from; leave") as found:
        trainer.train(resume_from_checkpoint=True)
    assert found.value.details[0].field == "resume_from_checkpoint"
    assert trainer.model is None, "said before anything loads"
    (tmp_path / "out" / "checkpoint-9").mkdir(parents=True)
    with pytest.raises(SpecInvalid, match="incomplete or were changed: checkpoint-9"):
        trainer.train(resume_from_checkpoint=True)


def test_only_a_training_is_completed(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(settings(tmp_path, max_steps=1), observer=RecordingObserver())
    trainer.save_model(str(tmp_path / "before"))
    assert "training_completed_at" not in metadata(tmp_path / "before")
    by_hand = trainer.create_trainer(
        trainer.data_loader.dataset(trainer.data_loader.train), trainer.get_training_arguments(), []
    )
    by_hand.train()
    trainer.save_model(str(tmp_path / "by_hand"))
    first = metadata(tmp_path / "by_hand")["training_completed_at"]
    trainer.save_model(str(tmp_path / "again"))
    assert metadata(tmp_path / "again")["training_completed_at"] == first, "of the training, not of the saving"
