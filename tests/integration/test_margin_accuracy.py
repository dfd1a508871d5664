"""Margin accuracy: by its formula for every method, on pairs for KTO too, and a half where nothing was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import reference_losses
from tests.fakes import RecordingObserver
from tests.training import METHODS, config, make_model, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.errors import SpecInvalid
from trainer_core.reference import side_of
from trainer_core.row_rules import comparable
from trainer_core.rows import pair_places
from trainer_core.scoring import share_positive

OF_PAIRS = ("preference_accuracy", "margin_accuracy", "margin")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("margins")
    make_model(folder / "model")
    pairs = some_rows("ipo", 24)
    write_rows(folder / "pairs.jsonl", pairs[:12])
    write_rows(folder / "held_out.jsonl", pairs[12:])
    write_rows(folder / "labelled.jsonl", some_rows("kto", 12))
    return folder


@pytest.fixture
def make(place: Path, tmp_path: Path) -> Callable[..., PreferenceTrainer]:
    def made(method: str, **fields: Any) -> PreferenceTrainer:
        base: dict[str, Any] = {
            "model_name": str(place / "model"),
            "dataset_path": str(place / "pairs.jsonl"),
            "eval_dataset_path": str(place / "held_out.jsonl"),
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "sample_generations": 0,
            "beta": 0.3,
        }
        settings = config(method, tmp_path / "out", **{**base, **fields})
        return PreferenceTrainer(settings, observer=RecordingObserver())

    return made


@torch.no_grad()
def disturbed(trainer: PreferenceTrainer) -> PreferenceTrainer:
    """With an adapter as if it had trained."""
    trainer.prepare()
    torch.manual_seed(3)
    for name, tensor in trainer.model.named_parameters():
        if "lora_B" in name:
            tensor.copy_(torch.randn(tensor.shape) * 0.05)
    trainer.model.eval()
    return trainer


@torch.no_grad()
def margins_of(trainer: PreferenceTrainer, pairs: list[dict[str, Any]]) -> torch.Tensor:
    """The margins of pairs by the formula, answer by answer, with the model's plain forward pass."""
    renderer, found = trainer.data_loader.renderer, []
    for pair in pairs:
        encoded = renderer.encode(pair["prompt"], [pair["chosen"], pair["rejected"]])
        for answer in encoded.answers_ids:
            live = reference_losses.answer_logps(trainer.model, encoded.prompt_ids, answer)
            with side_of(trainer._reference_for_scoring()):
                still = reference_losses.answer_logps(trainer.model, encoded.prompt_ids, answer)
            found.append((live, still, len(answer)))
    live, still, tokens = torch.tensor(found, dtype=torch.float64).T
    lengths = (tokens[::2], tokens[1::2]) if trainer.config.reward == "averaged" else None
    return reference_losses.margins(live[::2], live[1::2], still[::2], still[1::2], trainer.config.beta, lengths)


def first_evaluation(trainer: PreferenceTrainer) -> dict[str, float | None]:
    return next(values for _, values in trainer.observer.points if "eval_loss" in values)  # type: ignore[attr-defined]


# -- the formula


def test_a_tie_counts_a_half() -> None:
    assert share_positive(torch.tensor([0.0, -0.0, 2.0, 1e-30, -3.0])) == pytest.approx(0.6)
    assert share_positive(torch.tensor([])) is None


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_share_of_pairs_by_the_formula(method: str, make: Callable[..., PreferenceTrainer]) -> None:
    """KTO gets the same pairs, apart and in another order. Every third is swapped, so that margins of both signs occur."""
    pairs = some_rows("ipo", 40)[12:]
    pairs = [
        {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} if i % 3 == 0 else pair
        for i, pair in enumerate(pairs)
    ]
    trainer = disturbed(make(method))
    expected = margins_of(trainer, pairs)
    metrics = trainer.compute_preference_metrics(pairs)
    assert metrics["margin_accuracy"] == pytest.approx(reference_losses.margin_accuracy(expected))
    assert metrics["margin"] == pytest.approx(expected.mean().item(), rel=1e-3, abs=1e-6)
    assert 0.1 < metrics["margin_accuracy"] < 0.9, "margins of both signs, or a fault would not show"


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_report_it_and_batches_do_not(
    method: str, make: Callable[..., PreferenceTrainer], tmp_path: Path
) -> None:
    """Also where the token ids come from the cache."""
    for _ in ("tokenised", "from the cache"):
        trainer = make(method, cache_dir=str(tmp_path / "cache"), max_steps=2, learning_rate=1e-2)
        trainer.train()
        points = [values for _, values in trainer.observer.points]  # type: ignore[attr-defined]
        evaluations = [values for values in points if "eval_loss" in values]
        assert [values["eval_margin_accuracy"] is None for values in evaluations] == [False, False]
        assert not any("margin_accuracy" in values for values in points)
        expected = reference_losses.margin_accuracy(margins_of(trainer, some_rows("ipo", 24)[12:]))
        assert evaluations[-1]["eval_margin_accuracy"] == pytest.approx(expected)


# -- before the first step


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        *((method, {"use_lora": lora, "precision": "bf16"}) for method in METHODS for lora in (True, False)),
        *((method, {"use_lora": lora, "acceleration": "off"}) for method in METHODS for lora in (True, False)),
        *((method, {"use_lora": False}) for method in METHODS),
        *(("kto", {"use_lora": lora, "use_ref_model": False}) for lora in (True, False)),
        ("kto", {"use_lora": False, "use_ref_model": False, "acceleration": "off"}),
        ("kto", {"use_lora": False, "use_ref_model": False, "precision": "bf16"}),
        ("ipo", {"use_dora": True}),
    ],
)
def test_before_the_first_step_all_pairs_are_ties(
    method: str, fields: dict[str, Any], make: Callable[..., PreferenceTrainer]
) -> None:
    """Model and reference are computed in one way, so that equal weights give equal bits."""
    trainer = make(method, **fields)
    trainer.train()
    first = first_evaluation(trainer)
    assert (first["eval_margin_accuracy"], first["eval_margin"]) == (0.5, 0.0)


# -- KTO


def test_labelled_rows_have_none(place: Path, make: Callable[..., PreferenceTrainer]) -> None:
    trainer = make("kto", dataset_path=str(place / "labelled.jsonl"), eval_dataset_path=str(place / "labelled.jsonl"))
    trainer.train()
    results = trainer.evaluate_model()
    for name in OF_PAIRS:
        assert first_evaluation(trainer)[f"eval_{name}"] is None
        assert results[f"eval_{name}"] is None
    assert results["eval_overall_accuracy"] is not None
    # The rows to train on and those to evaluate on need not be of one kind.
    on_pairs = trainer.evaluate_model(some_rows("ipo", 12))
    assert all(on_pairs[f"eval_{name}"] is not None for name in OF_PAIRS)


def test_pairs_leave_the_metrics_of_rows_as_they_were(make: Callable[..., PreferenceTrainer]) -> None:
    pairs = some_rows("ipo", 12)
    singles = [
        {"prompt": pair["prompt"], "completion": pair[name], "label": label}
        for pair in pairs
        for name, label in (("chosen", True), ("rejected", False))
    ]
    trainer = disturbed(make("kto"))
    of_pairs, of_singles = (trainer.compute_preference_metrics(rows) for rows in (pairs, singles))
    assert [name for name, value in of_singles.items() if value is None] == list(OF_PAIRS)
    assert {**of_pairs, **dict.fromkeys(OF_PAIRS)} == of_singles


def test_a_pair_that_lost_a_row_does_not_count(make: Callable[..., PreferenceTrainer]) -> None:
    pairs = some_rows("ipo", 24)[12:]
    longer = [*pairs[:3], {**pairs[3], "rejected": pairs[3]["rejected"] * 80}, *pairs[4:]]
    trainer = disturbed(make("kto", on_overlong="drop"))
    rows = trainer.data_loader.prepare(longer)
    assert [row["label"] for row in rows if row["row"] == 4] == [True]
    assert len(rows) == 23
    margins = margins_of(trainer, [*pairs[:3], *pairs[4:]])
    metrics = trainer.compute_preference_metrics(longer)
    assert metrics["margin_accuracy"] == pytest.approx(reference_losses.margin_accuracy(margins))
    assert metrics["margin"] == pytest.approx(margins.mean().item(), rel=1e-3, abs=1e-6)


def test_both_rows_of_a_pair_are_on_one_side_of_a_split(make: Callable[..., PreferenceTrainer]) -> None:
    trainer = disturbed(make("kto", eval_dataset_path=None, validation_split=0.3))
    data = trainer.data_loader
    apart = {comparable(row["prompt"]) for row in data.validation}
    assert apart.isdisjoint(comparable(row["prompt"]) for row in data.train)
    assert 2 * len(pair_places(data.validation)) == len(data.validation) > 2
    pairs = [pair for pair in some_rows("ipo", 12) if comparable(pair["prompt"]) in apart]
    expected = reference_losses.margin_accuracy(margins_of(trainer, pairs))
    assert trainer.evaluate_model()["eval_margin_accuracy"] == pytest.approx(expected)


def test_stopping_by_a_metric_of_pairs_needs_pairs(place: Path, make: Callable[..., PreferenceTrainer]) -> None:
    fields: dict[str, Any] = {"early_stopping_patience": 1, "early_stopping_metric": "margin_accuracy"}
    with pytest.raises(SpecInvalid, match="compares the two answers of a pair"):
        make("kto", **fields, eval_dataset_path=str(place / "labelled.jsonl")).load()
    make("kto", **fields).load()
