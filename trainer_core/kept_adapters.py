"""Keeps the adapters of a LoRA model as they are while TRL builds a trainer around it."""

from typing import Any

import torch

from trainer_core import adapters
from trainer_core.reference import REFERENCE_ADAPTER


class KeptAdapters:
    """Keeps a LoRA model's adapters as they are while TRL builds a trainer around it.

    TRL treats any adapter as a pretrained one and copies it as the reference; and it rounds the adapters of a 4-bit model to
    bfloat16. Here a new adapter's reference is the base, an existing one's is the copy made on loading, and trained weights
    stay in float32.
    """

    def __init__(self, model: Any, keeps_reference: bool) -> None:
        self._model, self._keeps_reference = model, keeps_reference
        self._trainable: dict[str, torch.Tensor] = {}
        self._reference: dict[str, torch.Tensor] = {}

    def __enter__(self) -> None:
        if not hasattr(self._model, "peft_config"):
            return
        self._trainable = {n: p.detach().clone() for n, p in self._model.named_parameters() if p.requires_grad}
        if self._keeps_reference:
            own = adapters.tensors(self._model, REFERENCE_ADAPTER).items()
            self._reference = {name: tensor.detach().clone() for name, tensor in own}
            self._model.delete_adapter(REFERENCE_ADAPTER)

    @torch.no_grad()
    def __exit__(self, *error: Any) -> None:
        if not hasattr(self._model, "peft_config"):
            return
        names = set(self._model.peft_config)
        if not self._keeps_reference and REFERENCE_ADAPTER in names:
            self._model.delete_adapter(REFERENCE_ADAPTER)
        if self._keeps_reference:
            if REFERENCE_ADAPTER not in names:
                self._model.add_adapter(REFERENCE_ADAPTER, next(iter(self._model.peft_config.values())))
            for name, tensor in adapters.tensors(self._model, REFERENCE_ADAPTER).items():
                tensor.data = self._reference[name]
                tensor.requires_grad_(False)
        for name, tensor in self._model.named_parameters():
            if name in self._trainable:
                tensor.data = self._trainable[name]
