"""Adapters: one is loaded whole, or refused.

peft only warns when an adapter's file lacks tensors or has others: what is missing stays as it was drawn, and a run would
start from nothing. `check_file` finds that before weights load, `check_loaded` compares what was loaded with the file.
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
from trainer_core.errors import Detail, ModelRefused
from trainer_core.loading import loading

_FIELD = "adapter_name"
_PREFIX = "base_model.model."
_MARK = "lora_"
"""In the name of every tensor of a LoRA adapter, and of no base's."""


def tensors(policy: Any, name: str) -> dict[str, Tensor]:
    """An adapter's live tensors, under the names that its file has."""
    own = {key: tensor for key, tensor in policy.named_parameters() if _MARK in key}
    return get_peft_model_state_dict(policy, state_dict=own, adapter_name=name, save_embedding_layers=False)


def check_file(path: str, skeleton: Any, base_path: str) -> None:
    """Raises `ModelRefused` unless an adapter's file holds what its config asks for on a base model.

    Embeddings that were saved with it must be the base's own, but for the rounding of a dtype: trained ones would be part of
    every answer, and no reference could leave them out.

    Args:
        path: directory or hub name of the adapter; `base_path`: of its base.
        skeleton: the base without weights. It is adapted, and of no other use afterwards.
    """
    with loading(path, _FIELD):
        stored = _read(path)
        _check_embeddings(path, stored, skeleton, lambda name: _in_files(base_path, name, skeleton))
        config = PeftConfig.from_pretrained(path)
        # It warns when this differs from the base's place, which is no fault.
        config.base_model_name_or_path = None
        # Some ways of drawing the first values need the base's weights.
        config.init_lora_weights = False  # pyright: ignore[reportAttributeAccessIssue]  # LoRA's
        with torch.device("meta"):
            adapted = get_peft_model(skeleton, config)
        base: Any = adapted.get_base_model()
        if hasattr(base.get_output_embeddings(), "lora_A"):
            raise _refused(path, "adapts lm_head, which the fused loss would ignore")
        _check_names(path, _without_embeddings(stored, adapted), tensors(adapted, "default"))


def load(model: Any, path: str, name: str, *, is_trainable: bool = False) -> Any:
    """A model with an adapter under a name, all of it. Raises `ModelNotFound` or `ModelRefused`.

    Args:
        model: a base, or a LoRA model that has other adapters. One that is refused leaves no trace in the latter.
    """
    with loading(path, _FIELD):
        stored = _read(path)
        _check_embeddings(path, stored, model, lambda key: _live(model, key))
        own = _without_embeddings(stored, model)
        # peft would write any other tensor over the base's.
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
    """Gives the base's weights their own values back: an adapter's file may hold them rounded."""
    before = [(tensor, tensor.detach().clone()) for tensor in weights]
    yield
    with torch.no_grad():
        for tensor, values in before:
            tensor.copy_(values)


def check_loaded(policy: Any, path: str, name: str) -> None:
    """Raises `ModelRefused` unless an adapter's live tensors are those of its file, at their own dtype."""
    with loading(path, _FIELD):
        _check_live(path, _without_embeddings(_read(path), policy), tensors(policy, name))


def _read(path: str) -> dict[str, Tensor]:
    """All tensors of an adapter's file. Raises `ModelRefused` for one that is not finite."""
    found: dict[str, Tensor] = {}
    for file in model_files.weight_files(path, model_files.ADAPTER_WEIGHTS):
        try:
            found |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file.name} is not a whole safetensors file ({error}); copy it again") from error
    for name, tensor in found.items():
        values = tensor if tensor.element_size() > 1 else tensor.float()
        if not torch.isfinite(values).all():
            what = "NaN" if values.isnan().any() else "infinity"
            raise _refused(path, f"holds {what} in {name}; train or save it again")
    return found


def _check_names(path: str, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(wanted.keys() - stored), sorted(stored.keys() - wanted)
    others = sorted(name for name in wanted.keys() & stored if wanted[name].shape != stored[name].shape)
    if not (missing or unknown or others):
        return
    reasons: list[str] = []
    if missing:
        reasons.append(f"{len(missing)} are missing, the first is {missing[0]}")
    if unknown:
        reasons.append(f"{len(unknown)} belong to no layer that it adapts, the first is {unknown[0]}")
    if others:
        shapes = f"{tuple(stored[others[0]].shape)}, and the model needs {tuple(wanted[others[0]].shape)}"
        reasons.append(f"{len(others)} have another shape, the first is {others[0]}: it is {shapes}")
    count = len(missing) + len(unknown) + len(others)
    raise _refused(
        path,
        f"does not fit: {count} of its tensors do not match the model and adapter_config.json; {'; '.join(reasons)}. "
        "Name the base that it was trained on, or save it again with peft",
    )


def _check_live(path: str, stored: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    _check_names(path, stored, live)
    different = [name for name, tensor in live.items() if not _is_same(stored[name], tensor)]
    if different:
        raise _refused(
            path,
            f"was not loaded whole: {len(different)} tensors differ from its file, the first is {sorted(different)[0]}; "
            "save it again with peft",
        )


def _is_same(stored: Tensor, live: Tensor) -> bool:
    return torch.equal(stored.to(live.device, live.dtype), live.detach())


# -- embeddings that were saved with an adapter


def _check_embeddings(path: str, stored: Mapping[str, Tensor], model: Any, of_base: Callable[[str], Tensor | None]) -> None:
    for name in sorted(stored.keys() & _embeddings(model)):
        base = of_base(_base_name(name))
        if base is None:
            continue
        coarser = min(stored[name].dtype, base.dtype, key=lambda dtype: dtype.itemsize)
        if len(stored[name]) != len(base):
            raise _refused(
                path,
                f"does not fit: its embeddings ({name}) have {len(stored[name])} rows, the vocabulary of the model has "
                f"{len(base)}. Name the base that it was trained on",
            )
        if not torch.equal(stored[name].to(base.device, coarser), base.detach().to(coarser)):
            raise _refused(
                path,
                f"holds embeddings ({name}) other than the model's: trained embeddings, which no reference could leave out. "
                "Merge it into its base and name the result as model_name",
            )


def _without_embeddings(stored: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    names = _embeddings(model)
    return {name: tensor for name, tensor in stored.items() if name not in names}


def _embeddings(model: Any) -> set[str]:
    """The names that a base's embeddings may have in an adapter's file."""
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
    """A base's tensor; None where its files are elsewhere, or hold it in another form."""
    source = skeleton.all_tied_weights_keys.get(name, name)
    for file in model_files.weight_files(base_path):
        with safe_open(Path(file), "pt") as held:
            for key in (name, source):
                if key in held.keys():  # noqa: SIM118  # not a dict
                    return held.get_tensor(key)
    return None


def _causal(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _refused(path: str, what: str) -> ModelRefused:
    return ModelRefused(f"the adapter {path!r} {what}", [Detail(_FIELD, what)])
