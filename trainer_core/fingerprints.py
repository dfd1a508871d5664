"""Weights by name, and their fingerprints: taken from live tensors, never from file names."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

_STRETCH = 1024


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
        digest.update(_bytes(tensor))
        if is_quantized(tensor):
            # The codes alone are those of any multiple of the weights, too.
            state: dict[str, Tensor] = tensor.quant_state.as_dict(packed=True)  # pyright: ignore[reportAttributeAccessIssue]
            for part in sorted(state):
                digest.update(part.encode() + _bytes(state[part]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()


class Remembered:
    """Fingerprints of weights that are asked for again and again.

    SHA-256 of some gigabytes takes seconds, and of a GPU's they must be copied first. A checksum of every tensor, made where
    it lies, tells whether the weights are still those whose fingerprint is known; any that differs has them hashed anew.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[tuple[str, int, int]], str]] = {}

    def fingerprint(self, key: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
        """The fingerprint of live tensors. `key`: under which name they are remembered."""
        found = list(tensors)
        sums = [(name, *_checksum(tensor)) for name, tensor in found]
        if key not in self._known or self._known[key][0] != sums:
            self._known[key] = sums, fingerprint(found)
        return self._known[key][1]


def _checksum(tensor: Tensor) -> tuple[int, int]:
    """Sums modulo 2⁶⁴ over a tensor's bytes: plain, and with a weight for each stretch, so that moved ones are noticed."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    words = data[: len(data) // 8 * 8]
    if words.storage_offset() % 8:
        words = words.clone()
    numbers = words.view(torch.int64)
    rest = int(data[len(words) :].to(torch.int64).sum())
    stretches = numbers[: len(numbers) // _STRETCH * _STRETCH].view(-1, _STRETCH).sum(dim=1)
    last = numbers[len(numbers) // _STRETCH * _STRETCH :].sum()
    weights = 2 * torch.arange(len(stretches), device=stretches.device) + 1
    return int(stretches.sum() + last) + rest, int((stretches * weights).sum())


def side_fingerprint(base: str, model: nn.Module, adapter: str | None) -> str:
    """The fingerprint of a base, given as its own, with one adapter of a model on."""
    tensors = list(adapter_tensors(model, adapter)) if adapter else []
    return hashlib.sha256(f"{base}+{fingerprint(tensors)}".encode()).hexdigest() if tensors else base
