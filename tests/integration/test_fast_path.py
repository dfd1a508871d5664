"""The path in the metadata is the one that computed the losses, by counting."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import RecordingObserver
from tests.training import config, some_rows
from trainer_core import PreferenceTrainer


def test_counts_go_on_when_a_training_is_resumed(tmp_path: Path) -> None:
    whole = PreferenceTrainer(config("ipo", tmp_path / "whole", save_steps=2))
    whole.train()
    expected = whole.metadata()["acceleration"]
    resumed = PreferenceTrainer(config("ipo", tmp_path / "resumed", save_steps=2))
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    assert resumed.metadata()["acceleration"] == expected
    assert expected["batches"] == {"shared_prompt": 4, "plain": 0}
    plain = PreferenceTrainer(config("ipo", tmp_path / "plain", save_steps=2, acceleration="off"))
    plain.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    told = plain.metadata()["acceleration"]
    assert told["path"] == "mixed"
    assert told["batches"] == {"shared_prompt": 2, "plain": 2}


def test_counts_are_there_when_all_steps_were_done_before(tmp_path: Path) -> None:
    whole = PreferenceTrainer(config("ipo", tmp_path / "whole", save_steps=4))
    whole.train()
    resumed = PreferenceTrainer(config("ipo", tmp_path / "resumed", save_steps=4))
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-4")
    assert resumed.metadata()["acceleration"] == whole.metadata()["acceleration"]


@pytest.mark.parametrize("acceleration", ["auto", "off"])
def test_no_path_is_named_before_a_step(acceleration: str, tmp_path: Path) -> None:
    trainer = PreferenceTrainer(config("cpo", tmp_path, acceleration=acceleration))
    trainer.load()
    assert trainer.metadata()["acceleration"]["path"] is None
    trainer.evaluate_model(some_rows("cpo", 4))
    told = trainer.metadata()["acceleration"]
    assert told["path"] is None
    assert told["batches"] == {"shared_prompt": 0, "plain": 0}


class Wrapped(torch.nn.Module):
    """Hides a model as DistributedDataParallel does."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_a_wrapper_that_hides_the_fast_path_is_counted_as_plain(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(config("cpo", tmp_path, max_steps=2), observer=RecordingObserver())
    inner = trainer.prepare()
    inner._wrap_model = lambda model, *_, **__: Wrapped(model)
    trainer.train()
    told = trainer.metadata()["acceleration"]
    assert told["path"] == "plain"
    assert told["batches"] == {"shared_prompt": 0, "plain": 2}
    assert told["tokens_computed"] == 0
