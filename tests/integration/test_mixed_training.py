"""Trainings on several datasets: what they report and name, how they split, and that they resume exactly."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import RecordingObserver
from tests.integration.test_resume import assert_same, end_of
from tests.training import ON_LABELS, ON_PAIRS, config, make_model, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.checkpoints import newest_verified
from trainer_core.data_loader import PreferenceData
from trainer_core.dry_run import dry_run
from trainer_core.errors import DataOverlong, NonfiniteLoss, SpecInvalid, Stopped
from trainer_core.renderers import load_renderer
from trainer_core.row_rules import comparable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, and two files of pairs that have the prompts of their last 8 rows in common."""
    found = tmp_path_factory.mktemp("mixed")
    make_model(found / "model")
    rows = some_rows("ipo", 40)
    write_rows(found / "formal.jsonl", rows[:24])
    write_rows(found / "dialect.jsonl", [{**row, "chosen": f"{row['chosen']} نعم"} for row in rows[16:]])
    write_rows(found / "ratings.jsonl", some_rows("kto", 16))
    write_rows(found / "held_out.jsonl", some_rows("ipo", 60)[52:])
    return found


def settings(method: str, folder: Path, out: Path, measures: dict[str, dict[str, Any]], **fields: Any) -> Any:
    datasets = [{"path": str(folder / name), **measure} for name, measure in measures.items()]
    base = {
        "model_name": str(folder / "model"),
        "dataset_path": None,
        "datasets": datasets,
        "eval_dataset_path": str(folder / "held_out.jsonl"),
        "max_steps": None,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "eval_steps": 4,
        "logging_steps": 4,
        "save_steps": 2,
        "sample_generations": 0,
    }
    return config(method, out, **{**base, **fields})


WEIGHED: dict[str, dict[str, Any]] = {"formal.jsonl": {"weight": 1}, "dialect.jsonl": {"weight": 0.5}}
COUNTED: dict[str, dict[str, Any]] = {"formal.jsonl": {"rows": 8}, "ratings.jsonl": {}}


@pytest.mark.parametrize(
    ("method", "mix", "taken", "in_file"), [("ipo", WEIGHED, [24, 12], [24, 24]), ("kto", COUNTED, [8, 16], [24, 16])]
)
def test_a_resumed_mix_ends_as_an_unbroken_one(
    method: str, mix: dict[str, Any], taken: list[int], in_file: list[int], folder: Path, tmp_path: Path
) -> None:
    whole = PreferenceTrainer(settings(method, folder, tmp_path / "whole", mix), observer=RecordingObserver())
    whole.train()
    cut = settings(method, folder, tmp_path / "cut", mix)
    with pytest.raises(Stopped):
        PreferenceTrainer(cut, observer=RecordingObserver(stop_after=3)).train()
    resumed = PreferenceTrainer(cut, observer=RecordingObserver())
    resumed.train(resume_from_checkpoint=newest_verified([tmp_path / "cut"]))
    assert_same(end_of(resumed), end_of(whole))

    report = whole.data_loader.report()["datasets"]
    assert [each["rows_taken"] for each in report] == taken
    assert [each["rows_in_file"] for each in report] == in_file
    metadata = json.loads((tmp_path / "whole" / f"{method}_metadata.json").read_text(encoding="utf-8"))
    assert metadata["data"]["datasets"] == report
    assert metadata["data_plan_sha256"] == resumed.data_loader.plan_sha256
    card = (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    for each in report:
        assert f"- Dataset: `{each['name']}`, {each['rows_taken']} of its {each['rows_in_file']} rows\n" in card
    assert str(folder) not in card


def test_a_changed_mix_is_refused(folder: Path, tmp_path: Path) -> None:
    before = settings("ipo", folder, tmp_path / "out", WEIGHED)
    with pytest.raises(Stopped):
        PreferenceTrainer(before, observer=RecordingObserver(stop_after=2)).train()
    checkpoint = newest_verified([tmp_path / "out"])
    for mix in (
        {"formal.jsonl": {"weight": 1}, "dialect.jsonl": {"weight": 1}},
        {"formal.jsonl": {}, "dialect.jsonl": {"rows": 11}},
        {"formal.jsonl": {}},
        {"dialect.jsonl": {"weight": 0.5}, "formal.jsonl": {"weight": 1}},
    ):
        changed = PreferenceTrainer(settings("ipo", folder, tmp_path / "out", mix), observer=RecordingObserver())
        with pytest.raises(SpecInvalid, match="belongs to a run with a different data plan"):
            changed.train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize("method", [ON_PAIRS, ON_LABELS])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_split_of_a_mix_keeps_the_rows_of_a_prompt_together(
    method: str, share: float, folder: Path, tmp_path: Path
) -> None:
    mix: dict[str, dict[str, Any]] = {"formal.jsonl": {}, "dialect.jsonl": {}}
    given = settings(method, folder, tmp_path, mix, eval_dataset_path=None, validation_split=share)
    data = PreferenceData(given, load_renderer(given, given.model_name), RecordingObserver())
    data.load()
    sides = [{comparable(row["prompt"]) for row in rows} for rows in (data.train, data.validation)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    shared = {row["prompt"] for row in some_rows("ipo", 40)[16:24]}
    assert shared <= {row["prompt"] for row in (*data.train, *data.validation)}


def test_rows_are_named_by_their_dataset(folder: Path, tmp_path: Path) -> None:
    """In warnings, in the report, in the dry run's samples and in errors: by the line in the row's own file."""
    rows = some_rows("ipo", 8)
    long = {**rows[2], "prompt": "سؤال طويل " * 200}
    path = write_rows(tmp_path / "few.jsonl", [*rows[:2], {**rows[2], "chosen": "<|im_end|>", "rejected": "x"}, long])
    mix: dict[str, dict[str, Any]] = {"formal.jsonl": {"rows": 20}, path: {}}
    said = dry_run(settings("ipo", folder, tmp_path, mix, on_overlong="drop"))
    assert said["data"]["train"]["first_rows_dropped"] == ["few.jsonl:4"]
    (finding,) = [each for each in said["data"]["train"]["findings"] if each["code"] == "special_tokens_in_text"]
    assert finding["first_rows"] == ["few.jsonl:3"]
    messages = [each["message"] for each in said["warnings"] if each["code"] == "special_tokens_in_text"]
    assert len(messages) == 1
    assert messages[0].startswith("training rows: 1 row (few.jsonl:3) ")
    assert {str(sample["row"]).split(":")[0] for sample in said["samples"]} <= {"formal.jsonl", "few.jsonl"}
    formal, few = said["data"]["datasets"]
    assert (formal["rows_taken"], formal["rows_in_file"], formal["rows_trained_on"]) == (20, 24, 20)
    assert (few["rows_taken"], few["rows_in_file"], few["rows_trained_on"]) == (4, 4, 3)
    with pytest.raises(DataOverlong, match=r"row 4 of few") as caught:
        dry_run(settings("ipo", folder, tmp_path, mix, on_overlong="reject"))
    assert caught.value.details[0].line == 4
    assert caught.value.details[0].reason.endswith("(in few.jsonl)")


@pytest.mark.parametrize(("method", "mix"), [("ipo", WEIGHED), ("kto", COUNTED)])
def test_a_loss_that_is_not_finite_names_rows_by_their_dataset(
    method: str, mix: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """The numbers travel through the trainer's tensors and come out whole."""
    import torch

    trainer = PreferenceTrainer(settings(method, folder, tmp_path / "out", mix), observer=RecordingObserver())
    inner = trainer.prepare()
    batch = next(iter(inner.get_train_dataloader()))
    inner._prepare_inputs(batch)
    broken = torch.full((len(inner._rows), 3), torch.nan)
    with pytest.raises(NonfiniteLoss) as caught:
        inner.check_finite(broken)
    names = {str(trainer.data_loader.names.short(row["row"])) for row in trainer.data_loader.train}
    named = str(caught.value).partition("in rows ")[2].split(", ")
    assert len(named) >= 4
    assert set(named) <= names
    assert all(":" in name for name in named)
