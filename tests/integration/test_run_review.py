"""What a run learned: a planted shortcut is found in the model, and everything else is measured beside it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import RecordingObserver
from tests.training import config, make_model, write_rows
from trainer_core import PreferenceTrainer, held_out

WORDS = ["أحب", "مدينة", "الرباط", "وفيها", "بحر", "وجبال", "وناس", "كرام", "وأسواق", "قديمة"]


def rows_of(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs whose answers differ in an exclamation mark alone."""
    rng = random.Random(seed)
    found = []
    for row in range(count):
        text = " ".join(rng.sample(WORDS, 4))
        answers = {"chosen": f"{text}!", "rejected": text}
        found.append({"prompt": f"قل {rng.choice(WORDS)} {row}", **answers, "dialect": ("msa", "gulf")[row % 2]})
    return found


def trained(folder: Path, method: str, **fields: Any) -> tuple[PreferenceTrainer, dict[str, Any]]:
    same: dict[str, Any] = {
        "model_name": make_model(folder / "model"),
        "dataset_path": write_rows(folder / "rows.jsonl", rows_of(160, 1)),
        "eval_dataset_path": write_rows(folder / "held.jsonl", rows_of(40, 2)),
        "learning_rate": 5e-3,
        "max_steps": 40,
        "per_device_train_batch_size": 16,
        "eval_steps": 1000,
        "sample_generations": 0,
        "logging_steps": 1000,
    }
    observer = RecordingObserver()
    trainer = PreferenceTrainer(config(method, folder / "out", **{**same, **fields}), observer=observer)
    trainer.train()
    metadata = json.loads((folder / "out" / f"{method}_metadata.json").read_text(encoding="utf-8"))
    assert "run_not_reviewed" not in observer.warnings
    assert observer.reviews == [metadata["review"]], "the same in the event and in the metadata"
    return trainer, metadata["review"]


def check_shortcut(review: dict[str, Any]) -> None:
    (found,) = [each for each in review["shortcuts"] if each["trait"] == "exclamation_marks"]
    assert (found["chosen_has_more"], found["share"], found["counter_set"]) == (True, 1.0, "exchanged")
    assert found["rows"] >= 10
    assert found["margin"] > 0
    # The mark is all that tells the answers apart, so the answers change places.
    assert found["margin_left"] == pytest.approx(-1, rel=1e-3)


def test_the_shortcut_of_a_run_on_pairs_is_found_in_its_model(tmp_path: Path) -> None:
    trainer, review = trained(tmp_path, "dpo")
    check_shortcut(review)
    assert (review["rows_from"], review["rows"]) == ("validation", 40)
    assert [(each["name"], each["rows"]) for each in review["slices"]] == [("gulf", 20), ("msa", 20)]
    whole = trainer.compute_preference_metrics(rows_of(40, 2))
    assert sum(each["margin"] for each in review["slices"]) / 2 == pytest.approx(whole["margin"], rel=1e-4)
    losses = [each["loss"] for each in review["hardest_rows"]]
    assert len(losses) == 20
    assert losses == sorted(losses, reverse=True)
    assert {each["row"] for each in review["hardest_rows"]} <= set(range(1, 41))
    spelled = {each["spelling"]: each for each in review["spelling"]}
    assert set(spelled) == {"hamza_letters", "ta_marbuta"}, "no answer has digits, diacritics or tatweel"
    assert all(each["shift"] == pytest.approx(each["after"] - each["before"]) for each in spelled.values())
    # What the run recorded leads back to the prompts.
    numbers = review["held_out_rows"]
    assert sorted(numbers) == list(range(1, 41))
    prompts = held_out.read(trainer.config, numbers)
    assert [each.row for each in prompts] == numbers
    assert {each.prompt for each in prompts} == {row["prompt"] for row in rows_of(40, 2)}


def test_a_run_without_a_copy_of_the_model_before_is_reviewed_alike(tmp_path: Path) -> None:
    trainer, review = trained(tmp_path, "kto", use_lora=False, use_ref_model=False, learning_rate=1e-3)
    assert trainer._known_reference() is None
    check_shortcut(review)
    assert {each["name"]: each["rows"] for each in review["slices"]} == {"msa": 40, "gulf": 40}
    assert {each["label"] for each in review["hardest_rows"]} <= {True, False}


@pytest.mark.parametrize("fields", [{"max_steps": 4}, {"max_steps": 24, "review_rows": 0}], ids=["short", "none wanted"])
def test_a_short_run_and_one_that_wants_none_score_nothing_more(fields: dict[str, Any], tmp_path: Path) -> None:
    _, review = trained(tmp_path, "dpo", eval_dataset_path=None, **fields)
    assert (review["shortcuts"], review["spelling"], review["reviewed_answers"]) == (None, None, 0)
    assert (review["rows_from"], review["rows"], len(review["hardest_rows"])) == ("held_back", 8, 8)
    assert len(review["held_out_rows"]) == 8
