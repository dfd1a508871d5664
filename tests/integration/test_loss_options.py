"""Options of TRL's losses that no config here reaches yet: each override asks for them, and else is TRL's own."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from tests.conftest import TINY_MODEL
from tests.fakes import RecordingObserver
from tests.training import config, make_model, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.fast_path import FastPath
from trainer_core.methods.cpo_trainer import CPOTrainer, TokenizedCPOTrainer
from trainer_core.methods.cpo_trainer import TRLConfig as CPOConfig
from trainer_core.methods.ipo import TokenizedIPOTrainer
from trainer_core.methods.kto import TokenizedKTOTrainer


class _Tokenized:
    """Rows are token ids already."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class StockDPO(_Tokenized, DPOTrainer):
    pass


class StockKTO(_Tokenized, KTOTrainer):
    pass


class StockCPO(CPOTrainer):
    tokenize_row = staticmethod(TokenizedCPOTrainer.tokenize_row)


OURS: dict[str, Any] = {"dpo": TokenizedIPOTrainer, "kto": TokenizedKTOTrainer, "cpo": TokenizedCPOTrainer}
STOCK: dict[str, Any] = {"dpo": StockDPO, "kto": StockKTO, "cpo": StockCPO}
ARGUMENTS: dict[str, Any] = {"dpo": DPOConfig, "kto": KTOConfig, "cpo": CPOConfig}

SHARED, PLAIN = "shared_prompt", "plain"
CASES = [
    ("kto", {"loss_type": "kto"}, SHARED),
    ("kto", {"loss_type": "apo_zero_unpaired"}, SHARED),
    ("cpo", {"loss_type": "sigmoid", "label_smoothing": 0.1}, SHARED),
    ("cpo", {"loss_type": "hinge"}, SHARED),
    ("cpo", {"loss_type": "ipo"}, SHARED),
    ("cpo", {"loss_type": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0.0}, SHARED),
    ("cpo", {"loss_type": "simpo", "alpha": 0.5, "cpo_alpha": 0.0}, PLAIN),
    ("cpo", {"loss_type": "sigmoid", "alpha": 0.02}, PLAIN),
    ("dpo", {"loss_type": ["ipo"]}, SHARED),
    ("dpo", {"loss_type": ["sigmoid"], "use_weighting": True}, PLAIN),
    ("dpo", {"loss_type": ["sigmoid"], "f_divergence_type": "js_divergence"}, SHARED),
    ("dpo", {"loss_type": ["robust"], "label_smoothing": 0.1}, SHARED),
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, SHARED),
    ("dpo", {"loss_type": ["sigmoid"], "ld_alpha": 0.5}, SHARED),
]


def rows(method: str) -> Dataset:
    draw = torch.Generator().manual_seed(2)

    def ids(low: int, high: int) -> list[int]:
        return torch.randint(3, 300, (int(torch.randint(low, high, (), generator=draw)),), generator=draw).tolist()

    def row(i: int) -> dict[str, Any]:
        if method == "kto":
            answers = {"completion_ids": ids(2, 9), "KL_completion_ids": ids(2, 9), "label": i % 2 == 0}
        else:
            answers = {"chosen_ids": ids(2, 9), "rejected_ids": ids(2, 9)}
        return {"prompt_ids": ids(2, 9), **answers, "row": i}

    return Dataset.from_list([row(i) for i in range(4)])


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    made = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=301,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
    )
    # Answers unlike enough for probabilities that are not all the same.
    torch.nn.init.normal_(made.lm_head.weight, std=0.2)
    return made


def step(kind: Any, method: str, options: dict[str, Any], folder: Path) -> tuple[Any, Tensor, dict[str, Tensor]]:
    policy, reference = model(1), model(2)
    arguments = ARGUMENTS[method](
        output_dir=str(folder),
        per_device_train_batch_size=4,
        beta=0.3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        remove_unused_columns=False,
        **({"train_sampling_strategy": "sequential"} if method == "kto" else {}),
        **options,
    )
    data = rows(method) if kind is OURS[method] else rows(method).remove_columns("row")
    if options.get("loss_type") == "apo_zero_unpaired":
        # TRL's preparation makes no mismatched answers for it.
        data = data.remove_columns("KL_completion_ids")
    trainer = kind(
        model=policy,
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(TINY_MODEL),
        **({} if method == "cpo" else {"ref_model": reference}),
    )
    if kind is OURS[method]:
        settings = config("kto" if method == "kto" else "ipo", folder)
        fast_path = FastPath(settings, RecordingObserver(), (), dict)
        fast_path.take(trainer, policy, None if method == "cpo" else reference)
        trainer.fast_path = fast_path
    policy.train()
    source = [trainer.train_dataset[i] for i in range(4)]
    loss = trainer.compute_loss(policy, trainer._prepare_inputs(trainer.data_collator(source)))
    loss.backward()
    return trainer, loss.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("method", "options", "path"), CASES)
def test_loss_and_gradients_are_those_of_trl(method: str, options: dict[str, Any], path: str, tmp_path: Path) -> None:
    _, expected, gradients = step(STOCK[method], method, copy.deepcopy(options), tmp_path / "stock")
    trainer, loss, found = step(OURS[method], method, options, tmp_path / "ours")
    assert loss.isfinite()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert found.keys() == gradients.keys()
    assert max(gradient.norm() for gradient in gradients.values()) > 1e-4
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
    told = trainer.fast_path.metadata()
    assert told["path"] == path
    assert told["batches"] == {SHARED: int(path == SHARED), PLAIN: int(path == PLAIN)}
    reasons = told["plain_because"]
    assert bool(reasons) == (path == PLAIN)
    for reason in reasons.values():
        assert any(f"({name})" in reason for name in options)


def test_rows_are_mapped_by_a_function_that_holds_no_model() -> None:
    """datasets hashes the function, and would copy a method's trainer with its weights."""
    assert not inspect.ismethod(object.__new__(TokenizedCPOTrainer).tokenize_row)


def test_label_smoothing_of_ipo_is_not_put_on_another_loss(tmp_path: Path) -> None:
    options = {"loss_type": ["sigmoid"]}
    _, expected, _ = step(STOCK["dpo"], "dpo", options, tmp_path / "stock")

    class Smoothed(TokenizedIPOTrainer):
        smoothing = 0.2

    OURS["smoothed"], ARGUMENTS["smoothed"] = Smoothed, DPOConfig
    try:
        _, loss, _ = step(Smoothed, "smoothed", options, tmp_path / "ours")
    finally:
        del OURS["smoothed"], ARGUMENTS["smoothed"]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_a_call_that_passes_more_is_answered_by_trl(tmp_path: Path) -> None:
    """As `padding_free` passes positions in the place of a mask."""
    trainer, _, _ = step(OURS["dpo"], "dpo", {"loss_type": ["ipo"]}, tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 7, 8]])
    call = {"input_ids": ids, "labels": labels, "fused_lm_head": True}
    with torch.no_grad():
        expected = trainer.model(**call, attention_mask=torch.ones_like(ids))
        found = trainer.model(**call, position_ids=torch.arange(4)[None])
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-6)
    (calls,) = trainer.fast_path.metadata()["plain_because"].values()
    assert calls.startswith("TRL's call passes arguments that the fast path does not support")
    assert calls.endswith("(position_ids, attention_mask=None)")


@pytest.mark.parametrize("use_ref_model", [True, False])
@pytest.mark.parametrize("use_lora", [True, False])
def test_apo_zero_trains_in_batches_of_one_without_partners(use_lora: bool, use_ref_model: bool, tmp_path: Path) -> None:
    fields = {
        "loss_type": "apo_zero_unpaired",
        "model_name": make_model(tmp_path / "model"),
        "dataset_path": write_rows(tmp_path / "rows.jsonl", some_rows("kto", 12)),
        "use_lora": use_lora,
        "use_ref_model": use_ref_model,
        "per_device_train_batch_size": 1,
        "num_train_epochs": 2,
        "max_steps": None,
        "learning_rate": 1e-3 if use_lora else 1e-5,
    }
    trainer = PreferenceTrainer(config("kto", tmp_path / "out", **fields), observer=RecordingObserver())
    trainer.train()
    assert trainer.trainer.state.global_step == 24
    assert not any(name.startswith("KL_") for row in trainer.data_loader.train for name in row)
    assert trainer.acceleration_metadata()["path"] == "shared_prompt"
    assert trainer.metadata()["loss_type"] == "apo_zero_unpaired"
    found = trainer.evaluate_model(some_rows("kto", 6))
    assert found["eval_kl_estimate"] is None
    assert found["eval_kto_loss"] == pytest.approx(found["eval_loss"], rel=1e-5)
