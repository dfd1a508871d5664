"""Adapters of one small base: some that fit it in every way that peft knows, and some that do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

Weights = dict[str, Tensor]
FILE = "adapter_model.safetensors"
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDINGS = "base_model.model.model.embed_tokens.weight"

FITTING: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32}},
    "some layers": {"layers_to_transform": [1]},
    "dropout": {"lora_dropout": 0.1},
    "all linear": {"target_modules": "all-linear"},
    "biases of B": {"lora_bias": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "embeddings adapted": {"target_modules": ["q_proj", "embed_tokens"]},
}


def make_adapter(
    base: str, folder: Path, *, vocabulary: int | None = None, with_embeddings: bool = False, **lora: Any
) -> Path:
    """Saves an adapter of random weights, none of them zero, and returns its directory."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if vocabulary:
        model.resize_token_embeddings(vocabulary)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **lora}
    adapted: Any = get_peft_model(model, LoraConfig(**options))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "lora_" in name:
                tensor.add_(torch.randn(tensor.shape) * 0.05)
    adapted.save_pretrained(folder, save_embedding_layers=with_embeddings or bool(vocabulary))
    return folder


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """Changes what an adapter's file holds."""
    # Copies: the file that is read is the one that is written.
    weights = {name: tensor.clone() for name, tensor in load_file(folder / FILE).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(weights).items()}, folder / FILE, {"format": "pt"})
    return folder


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name.replace(old, new, 1): tensor for name, tensor in weights.items()}


def with_value(name: str, value: float) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        weights[name].view(-1)[0] = value
        return weights

    return change


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


def with_more(name: str, *shape: int) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: torch.ones(shape)}


MISFITS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "nested names": (
        renamed("base_model.model.", "base_model.model.base_model.model."),
        r"does not match .* \(8 tensors are missing \(.*lora_A.weight\), 8 tensors belong to layers that it does not adapt",
    ),
    "half of the names": (
        renamed("v_proj", "w_proj"),
        r"4 tensors belong to layers that it does not adapt \(the first is .*w_proj.lora_A.weight",
    ),
    "one is missing": (
        without(f"{Q_PROJ}.lora_B.weight"),
        r"\(1 tensor is missing: .*lora_B.weight",
    ),
    "a tensor of the base": (
        with_more(f"{Q_PROJ}.base_layer.weight", 32, 32),
        "1 tensor belongs to a layer that it does not adapt: .*q_proj.base_layer.weight",
    ),
    "a norm of the base": (with_more("base_model.model.model.norm.weight", 32), "does not adapt: .*model.norm.weight"),
    "another width": (
        lambda weights: {**weights, f"{Q_PROJ}.lora_A.weight": torch.ones(4, 64)},
        r"1 tensor has the wrong shape: .*q_proj.lora_A.weight is \(4, 64\), but the model needs \(4, 32\)",
    ),
    "NaN": (with_value(f"{Q_PROJ}.lora_A.weight", float("nan")), "contains NaN in .*q_proj.lora_A.weight"),
    "infinity": (with_value(f"{Q_PROJ}.lora_B.weight", float("-inf")), "contains inf in .*q_proj.lora_B.weight"),
    "nothing": (lambda _: {}, r"\(8 tensors are missing"),
}
