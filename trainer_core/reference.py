"""The reference: a frozen view of the policy's own weights, or a separate model; and the proof that it is the right one.

Knows how a PEFT model switches adapters. Knows nothing of configs, data or losses.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl.trainer.utils import use_adapter

from trainer_core import adapters, model_files, stored_weights
from trainer_core.acceleration import causal_of
from trainer_core.errors import ReferenceMismatch
from trainer_core.fingerprints import adapter_tensors, base_tensors
from trainer_core.wording import say

TRAINED_ADAPTER = "default"
REFERENCE_ADAPTER = "ref"


class FrozenView:
    """A LoRA model without the adapter being trained: the same tensors, no gradients.

    Args:
        policy: the LoRA model.
        adapter: the name of a frozen adapter to use instead; None: the base alone.
    """

    def __init__(self, policy: PeftModel, adapter: str | None = None) -> None:
        self.policy, self.adapter = policy, adapter

    def active(self) -> AbstractContextManager[Any]:
        """Within this context the policy answers as this view."""
        return use_adapter(self.policy, self.adapter)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in [*base_tensors(self.policy), *adapter_tensors(self.policy, self.adapter)]:
            yield name, parameter.detach()

    def parameters(self) -> Iterator[Tensor]:
        return (parameter for _, parameter in self.named_parameters())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.active():
            return self.policy(*args, **kwargs)

    def __repr__(self) -> str:
        kind = type(self.policy.get_base_model()).__name__
        return f"FrozenView(of={kind}, adapter={self.adapter}, device={self.device})"


def model_of(reference: Any) -> Any:
    """The module to call for a reference's answers, inside `side_of(reference)`."""
    return reference.policy if isinstance(reference, FrozenView) else reference


def settings_of(reference: Any) -> dict[str, Any]:
    """What decides a model's answers besides its weights: its configuration, and that of its adapter."""
    model: Any = model_of(reference)
    adapter = reference.adapter if isinstance(reference, FrozenView) else None
    return {
        "model": _without(causal_of(model).config.to_dict(), ("_name_or_path", "transformers_version", "dtype")),
        "adapter": _without(model.peft_config[adapter].to_dict(), ("base_model_name_or_path", "inference_mode"))
        if adapter
        else None,
    }


def _without(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if name not in names}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in kept.items()}


def side_of(reference: Any) -> AbstractContextManager[Any]:
    """The context in which `model_of(reference)` answers as the reference.

    Raises:
        ReferenceMismatch: an adapter that must be off is still on.
    """
    if not isinstance(reference, FrozenView):
        return nullcontext()
    return _Checked(reference)


class _Checked:
    """A view's context that checks the layers themselves, so that an adapter left on raises an error."""

    def __init__(self, view: FrozenView) -> None:
        self._view, self._context = view, view.active()

    def __enter__(self) -> None:
        self._context.__enter__()
        try:
            check_adapter(self._view.policy, self._view.adapter, "reference")
        except ReferenceMismatch:
            self._context.__exit__(None, None, None)
            raise

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def check_adapter(policy: Any, adapter: str | None, side: str) -> None:
    """Raises `ReferenceMismatch` unless exactly this adapter is active in every LoRA layer, and none is merged."""
    wanted = {adapter} if adapter else set()
    for name, layer in policy.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        active: set[str] = set() if layer.disable_adapters else set(layer.active_adapters)
        if layer.merged:
            raise ReferenceMismatch(say("adapter_is_merged", kind=say(f"kind.{side}"), layer=name))
        if active != wanted:
            sides = {"found": sorted(active), "wanted": sorted(wanted)}
            raise ReferenceMismatch(say("adapters_on", kind=say(f"kind.{side}"), layer=name, **sides))


def check_adapter_files(reference: Any, adapter_path: str | None) -> None:
    """Compares a reference's adapter with its file.

    Args:
        adapter_path: directory or hub name of that adapter.

    Raises:
        ReferenceMismatch: a tensor differs from its file.
        ModelRefused: a file holds NaN or infinity.
    """
    if isinstance(reference, FrozenView) and reference.adapter and adapter_path:
        live = adapters.tensors(reference.policy, reference.adapter)
        stored_weights.check(
            live, model_files.weight_files(adapter_path, model_files.ADAPTER_WEIGHTS), say("kind.reference")
        )
