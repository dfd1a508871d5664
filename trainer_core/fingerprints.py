"""Weights by name, and their fingerprints: taken from live tensors, never from file names."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights without adapters, under the names that the base model gives them."""
    prefix = "base_model.model."
    for name, tensor in model.named_parameters():
        if "lora_" not in name:
            yield name.removeprefix(prefix).replace(".base_layer.", "."), tensor


def adapter_tensors(model: nn.Module, adapter: str | None) -> Iterator[tuple[str, Tensor]]:
    """One adapter's weights, under the names that its file has: a copy under another name has the same fingerprint."""
    mark = f".{adapter}."
    for name, tensor in model.named_parameters():
        if "lora_" in name and mark in name:
            yield name.replace(mark, "."), tensor


def is_quantized(tensor: Tensor) -> bool:
    """Whether a weight is held in 4 bit."""
    return hasattr(tensor, "quant_state")


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) over names, shapes and bytes of live tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def side_fingerprint(base: str, model: nn.Module, adapter: str | None) -> str:
    """The fingerprint of a base, given as its own, with one adapter of a model on."""
    tensors = list(adapter_tensors(model, adapter)) if adapter else []
    return hashlib.sha256(f"{base}+{fingerprint(tensors)}".encode()).hexdigest() if tensors else base
