"""LoRA options that a continued adapter or TRL may override: dropout, DoRA, rank-stabilised scaling."""

from typing import Any

from peft import PeftConfig
from torch import nn

from trainer_core.config import TrainingSettings
from trainer_core.errors import SpecInvalid
from trainer_core.loading import loading
from trainer_core.observer import Observer
from trainer_core.reference import TRAINED_ADAPTER
from trainer_core.wording import say


def check(settings: TrainingSettings, adapter_path: str | None) -> None:
    """Raises `SpecInvalid` if the settings contradict the adapter that the run continues from.

    Args:
        adapter_path: directory or hub name of that adapter; None: the run starts with a new one.
    """
    if adapter_path is None:
        return
    found = _config(adapter_path)
    for name, what in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")):
        if getattr(settings, name) and not getattr(found, name, False):
            sentence = say("adapter_without_kind", field=name, adapter=settings.adapter_name, kind=what)
            raise SpecInvalid.at(name, sentence)
    if settings.lora_dropout and getattr(found, "target_parameters", None):
        raise SpecInvalid.at("lora_dropout", say("adapter_no_dropout", adapter=settings.adapter_name))


def warn(settings: TrainingSettings, adapter_path: str | None, observer: Observer) -> None:
    """Warns if the adapter was trained with dropout, and this run uses less, none or more."""
    own = getattr(_config(adapter_path), "lora_dropout", 0.0) if adapter_path else 0.0
    if own and own != settings.lora_dropout:
        shares = {"before": own, "now": settings.lora_dropout}
        observer.warning("adapter_dropout", say("adapter_dropout", adapter=settings.adapter_name, **shares))


def set_dropout(policy: Any, share: float) -> None:
    """Applies dropout to the trained adapter, and nowhere else.

    TRL switches off every dropout of a model when it builds a trainer. The reference is scored while the model is in
    training mode, so its frozen adapter must have none.

    Args:
        policy: a LoRA model. Any other is left as it is.
        share: of the inputs of each adapted layer; 0: none.
    """
    if not hasattr(policy, "peft_config"):
        return
    for layer in policy.modules():
        rates = getattr(layer, "lora_dropout", None)
        if isinstance(rates, nn.ModuleDict):
            for name in rates:
                is_on = name == TRAINED_ADAPTER and share
                rates[name] = nn.Dropout(share) if is_on else nn.Identity()
    # Saved with the adapter: the dropout that it trained with.
    policy.peft_config[TRAINED_ADAPTER].lora_dropout = share


def _config(path: str) -> PeftConfig:
    with loading(path, "adapter_name", needs_weights=False):
        return PeftConfig.from_pretrained(path)
