"""Every step's loss is that of a bare TRL trainer which gets the same rows as text, in the same order."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer

from tests.conftest import TINY_MODEL
from tests.fakes import RecordingObserver
from tests.methods import facts_of
from tests.training import METHODS, config, learning_rates, on_labels, small_model, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.models import load_policy, load_reference, weights_dtype

ROWS = 64


def epochs_of(method: str) -> int:
    # The order of labelled rows is the same in each epoch, and that of pairs is not.
    return 2 if on_labels(method) else 1


def steps_of(method: str) -> int:
    return epochs_of(method) * ROWS // 8


def stock_log(method: str, settings: Any, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, float]]:
    """The log of TRL's own trainer, tokenising by itself, on the same initial weights and with the same learning rates."""
    arguments = {
        "output_dir": str(folder),
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "learning_rate": settings.learning_rate,
        "max_length": settings.max_length,
        "beta": settings.beta,
        "seed": settings.seed,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    model = load_policy(settings, settings.model_name, None, "fp32")
    reference: dict[str, Any] = {}
    if settings.loss_needs_reference:
        # TRL would copy the new adapter, which is the base as long as it is new; a full second model is the same.
        reference = {"ref_model": load_reference(settings.model_name, weights_dtype(settings.use_lora, "fp32"), False)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_class, config_class, own = facts_of(method).stock()
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    names = ("prompt", "completion", "label") if on_labels(method) else ("prompt", "chosen", "rejected")
    data = Dataset.from_list([{name: row[name] for name in names} for row in rows])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate, weight_decay=0
    )
    # TRL's warm-up would start at zero.
    rates = [*learning_rates(settings, steps_of(method)), 0.0]
    scheduler = LambdaLR(optimizer, lambda step: rates[step] / settings.learning_rate)
    options = {"train_dataset": data, "processing_class": tokenizer, "optimizers": (optimizer, scheduler), **reference}
    trainer = trainer_class(model=model, args=config_class(**arguments, **own), **options)
    trainer.train()
    assert trainer.state.max_steps == steps_of(method)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def stock_losses(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, float]]]:
    """`stock_log`, once for the same rows in the same order."""
    known: dict[str, list[dict[str, float]]] = {}

    def losses(method: str, settings: Any, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        texts = [{name: value for name, value in row.items() if not name.endswith("_ids")} for row in rows]
        key = json.dumps([method, settings.use_lora, texts])
        if key not in known:
            known[key] = stock_log(method, settings, rows, tmp_path_factory.mktemp("stock"))
        return known[key]

    return losses


@pytest.mark.parametrize("acceleration", ["auto", "off"])
@pytest.mark.parametrize("use_lora", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_each_step_has_the_loss_of_bare_trl(
    method: str, use_lora: bool, acceleration: str, stock_losses: Callable[..., Any], tmp_path: Path
) -> None:
    rows = some_rows(method, ROWS)
    settings = config(
        method,
        tmp_path / "ours",
        model_name=small_model(),
        dataset_path=write_rows(tmp_path / "rows.jsonl", rows),
        # Text without a template is what both render the same way: TRL learns the line break after a template's end token.
        apply_chat_template=False,
        use_lora=use_lora,
        acceleration=acceleration,
        max_steps=None,
        num_train_epochs=epochs_of(method),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=2e-3 if use_lora else 1e-4,
    )
    observer = RecordingObserver()
    trainer = PreferenceTrainer(settings, observer=observer)
    trainer.load()
    trainer.train()
    ours = [values for _, values in observer.points if "loss" in values]
    stock = stock_losses(method, settings, trainer.data_loader.train)
    assert [one["learning_rate"] for one in ours] == pytest.approx([one["learning_rate"] for one in stock])
    losses = [one["loss"] for one in stock]
    assert len(losses) == steps_of(method)
    assert max(losses) - min(losses) > 1e-3, "the losses move, so that equality says something"
    assert [one["loss"] for one in ours] == pytest.approx(losses, rel=1e-5)
