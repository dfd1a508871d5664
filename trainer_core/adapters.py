"""Adapters: each loads completely or is refused.

peft only warns when an adapter's file has missing or unknown tensors. Missing tensors keep their random values, so a run
would start from scratch. `check_file` finds this before the weights load; `check_loaded` compares the loaded tensors with
the file.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer_core import model_files
from trainer_core.errors import ModelRefused
from trainer_core.loading import loading
from trainer_core.wording import Message, say

_FIELD = "adapter_name"
_PREFIX = "base_model.model."
_MARK = "lora_"
"""Part of the name of every LoRA tensor, and of no base tensor."""


def tensors(policy: Any, name: str) -> dict[str, Tensor]:
    """An adapter's live tensors, under the names used in its file."""
    own = {key: tensor for key, tensor in policy.named_parameters() if _MARK in key}
    return get_peft_model_state_dict(policy, state_dict=own, adapter_name=name, save_embedding_layers=False)


def check_file(path: str, skeleton: Any, base_path: str) -> None:
    """Raises `ModelRefused` unless an adapter's file holds what its config asks for on this base model.

    Embeddings saved with the adapter must equal the base's, up to rounding to a dtype. Trained embeddings would take part in
    every answer, and the reference could not switch them off.

    Args:
        path: directory or hub name of the adapter.
        skeleton: the base without weights. This call modifies it, so do not use it afterwards.
        base_path: directory or hub name of the base.
    """
    with loading(path, _FIELD):
        stored = _read(path)
        _check_embeddings(path, stored, skeleton, lambda name: _in_files(base_path, name, skeleton))
        config = PeftConfig.from_pretrained(path)
        # peft warns when this differs from the base's path, which is harmless.
        config.base_model_name_or_path = None
        # Some initialisations need the base's weights.
        config.init_lora_weights = False  # pyright: ignore[reportAttributeAccessIssue]  # LoRA's
        with torch.device("meta"):
            adapted = get_peft_model(skeleton, config)
        base: Any = adapted.get_base_model()
        if hasattr(base.get_output_embeddings(), "lora_A"):
            raise _refused(say("adapter_adapts_head", adapter=path))
        _check_names(path, _without_embeddings(stored, adapted), tensors(adapted, "default"))


def load(model: Any, path: str, name: str, *, is_trainable: bool = False) -> Any:
    """Loads a complete adapter into a model under a name, and returns the model. Raises `ModelNotFound` or `ModelRefused`.

    Args:
        model: a base, or a LoRA model that has other adapters. A refused adapter leaves no trace in the latter.
    """
    with loading(path, _FIELD):
        stored = _read(path)
        _check_embeddings(path, stored, model, lambda key: _live(model, key))
        own = _without_embeddings(stored, model)
        # peft would overwrite the base's weights with any tensor that is not LoRA's.
        _check_names(path, {key: tensor for key, tensor in own.items() if _MARK not in key}, {})
        with _kept(_live(model, _base_name(key)) for key in stored.keys() - own):
            if not isinstance(model, PeftModel):
                policy = PeftModel.from_pretrained(model, path, name, is_trainable=is_trainable)
                _check_live(path, own, tensors(policy, name))
                return policy
            try:
                model.load_adapter(path, name, is_trainable=is_trainable)
                _check_live(path, own, tensors(model, name))
            except BaseException:
                if name in model.peft_config:
                    model.delete_adapter(name)
                raise
        return model


@contextmanager
def _kept(weights: Iterable[Tensor]) -> Generator[None]:
    """Restores the base's weights afterwards: an adapter's file may hold rounded copies of them."""
    before = [(tensor, tensor.detach().clone()) for tensor in weights]
    yield
    with torch.no_grad():
        for tensor, values in before:
            tensor.copy_(values)


def check_loaded(policy: Any, path: str, name: str) -> None:
    """Raises `ModelRefused` unless an adapter's live tensors equal those in its file, compared in the live dtype."""
    with loading(path, _FIELD):
        _check_live(path, _without_embeddings(_read(path), policy), tensors(policy, name))


def _read(path: str) -> dict[str, Tensor]:
    """All tensors in an adapter's file. Raises `ModelRefused` if any value is not finite."""
    found: dict[str, Tensor] = {}
    for file in model_files.weight_files(path, model_files.ADAPTER_WEIGHTS):
        try:
            found |= load_file(file)
        except SafetensorError as error:
            raise ValueError(say("weights_file_broken", file=file.name, problem=str(error))) from error
    for name, tensor in found.items():
        values = tensor if tensor.element_size() > 1 else tensor.float()
        if not torch.isfinite(values).all():
            what = "NaN" if values.isnan().any() else "inf"
            raise _refused(say("adapter_not_finite", adapter=path, what=what, tensor=name))
    return found


def _check_names(path: str, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(wanted.keys() - stored), sorted(stored.keys() - wanted)
    others = sorted(name for name in wanted.keys() & stored if wanted[name].shape != stored[name].shape)
    if not (missing or unknown or others):
        return
    reasons: list[Message] = []
    if missing:
        reasons.append(say("adapter_tensors_missing", n=len(missing), first=missing[0]))
    if unknown:
        reasons.append(say("adapter_tensors_unknown", n=len(unknown), first=unknown[0]))
    if others:
        first = others[0]
        shapes = {"found": str(tuple(stored[first].shape)), "wanted": str(tuple(wanted[first].shape))}
        reasons.append(say("adapter_tensors_shaped", n=len(others), first=first, **shapes))
    raise _refused(say("adapter_tensors_unfit", adapter=path, reasons=reasons))


def _check_live(path: str, stored: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    _check_names(path, stored, live)
    different = [name for name, tensor in live.items() if not _is_same(stored[name], tensor)]
    if different:
        raise _refused(say("adapter_loaded_wrong", adapter=path, n=len(different), first=min(different)))


def _is_same(stored: Tensor, live: Tensor) -> bool:
    return torch.equal(stored.to(live.device, live.dtype), live.detach())


# -- embeddings saved with an adapter


def _check_embeddings(path: str, stored: Mapping[str, Tensor], model: Any, of_base: Callable[[str], Tensor | None]) -> None:
    for name in sorted(stored.keys() & _embeddings(model)):
        base = of_base(_base_name(name))
        if base is None:
            continue
        coarser = min(stored[name].dtype, base.dtype, key=lambda dtype: dtype.itemsize)
        if len(stored[name]) != len(base):
            rows = {"found": len(stored[name]), "wanted": len(base)}
            raise _refused(say("adapter_embedding_rows", adapter=path, tensor=name, **rows))
        if not torch.equal(stored[name].to(base.device, coarser), base.detach().to(coarser)):
            raise _refused(say("adapter_embeddings_trained", adapter=path, tensor=name))


def _without_embeddings(stored: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    names = _embeddings(model)
    return {name: tensor for name, tensor in stored.items() if name not in names}


def _embeddings(model: Any) -> set[str]:
    """The names that the base's embeddings can have in an adapter's file."""
    causal = _causal(model)
    ends = causal.get_input_embeddings(), causal.get_output_embeddings()
    places = [name for name, module in causal.named_modules(remove_duplicate=False) if any(module is end for end in ends)]
    return {f"{_PREFIX}{place}{inner}.weight" for place in places for inner in ("", ".base_layer")}


def _base_name(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".")


def _live(model: Any, name: str) -> Tensor:
    module = _causal(model).get_submodule(name.rpartition(".")[0])
    return getattr(module, "base_layer", module).weight


def _in_files(base_path: str, name: str, skeleton: Any) -> Tensor | None:
    """A base tensor read from its files; None if they are elsewhere or hold it in another form."""
    source = skeleton.all_tied_weights_keys.get(name, name)
    for file in model_files.weight_files(base_path):
        with safe_open(Path(file), "pt") as held:
            for key in (name, source):
                if key in held.keys():  # noqa: SIM118  # not a dict
                    return held.get_tensor(key)
    return None


def _causal(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _refused(sentence: Message) -> ModelRefused:
    return ModelRefused.at(_FIELD, sentence)
