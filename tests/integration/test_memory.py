"""The memory estimate against the tensors that autograd keeps, and what `gradient_checkpointing: auto` makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.training import METHODS, config
from trainer_core import PreferenceTrainer
from trainer_core.acceleration import Savings, accelerate
from trainer_core.memory import Shape, activation_bytes, decide

SIZES = {"wide": (256, 704, 8, 2), "narrow": (128, 512, 4, 4)}


def kept_bytes(model: Any, rows: int, prompt: int, answer: int) -> int:
    """Bytes of the tensors that a forward pass keeps, beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(1, 500, (2 * rows, prompt + answer))
    ids[rows:, :prompt] = ids[:rows, :prompt]
    labels = ids.clone()
    labels[:, :prompt] = -100
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
    assert outputs.log_probs.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [(Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)], ids=["qwen2", "qwen3"])
def test_the_estimate_is_near_what_autograd_keeps(kind: Any, size: str, lora: bool, dtype: torch.dtype) -> None:
    hidden, intermediate, heads, keys = SIZES[size]
    settings = kind[0](
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=32,
        attn_implementation="sdpa",
    )
    model = kind[1](settings).to(dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=16))
    model.train()
    accelerate(model, Savings())
    kept = kept_bytes(model, rows=4, prompt=128, answer=64)
    shape = Shape.of(settings.to_dict())
    estimate = activation_bytes(shape, 4 * (128 + 2 * 64), torch.finfo(dtype).bits // 8, has_adapters=lora)
    assert 0.75 <= estimate / kept <= 1.3


def test_a_decision_has_its_reason() -> None:
    kept = decide(2**30, 2**32)
    assert not kept.checkpointing
    assert "1 GiB" in kept.because
    assert "4 GiB are free" in kept.because
    assert decide(2**32, 2**32).checkpointing


@pytest.mark.parametrize("method", METHODS)
def test_auto_recomputes_only_where_memory_asks_for_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = PreferenceTrainer(config(method, tmp_path / "roomy", gradient_checkpointing="auto"))
    assert not roomy.get_training_arguments().gradient_checkpointing
    told = roomy.acceleration_metadata()["gradient_checkpointing"]
    assert "are free" in told["because"]
    monkeypatch.setattr("trainer_core.fast_path.free_memory", lambda: 2**20)
    tight = PreferenceTrainer(config(method, tmp_path / "tight", gradient_checkpointing="auto"))
    assert tight.get_training_arguments().gradient_checkpointing
    assert tight.acceleration_metadata()["gradient_checkpointing"]["checkpointing"]
