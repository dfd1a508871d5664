"""Checks that need no loaded model: libraries, places, model configurations, the modules that LoRA names.

Each raises one of the product's errors, which names the field and the fix. Nothing here reads weights.
"""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from trainer_core import adapters, lora_options, model_files, optimizers, trackers, weight_headers
from trainer_core.config import PreferenceConfig, TrainingSettings
from trainer_core.errors import Detail, ModelRefused, NotInstalled, SpecInvalid
from trainer_core.loading import loading
from trainer_core.models import Locate, refuse_adapter
from trainer_core.observer import Observer
from trainer_core.row_rules import Row
from trainer_core.rows import pair_places
from trainer_core.wording import say

# Where accelerate reads the number of processes.
_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_BLOCK = 64
# Adapter initialisations that leave the base unchanged; the others move part of the base into the adapter.
_PLAIN_STARTS = ("gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Places:
    """The locations of a config's models: directories, or hub names."""

    model: str
    reference: str
    adapter: str | None


def check(config: PreferenceConfig, locate: Locate) -> Places:
    """Checks everything that depends on the config alone. Raises `SpecInvalid`, `ModelNotFound` or `ModelRefused`."""
    _check_processes()
    _check_devices()
    _check_reporters(config)
    optimizers.check(config)
    _check_output_dir(config.output_dir)
    if config.load_in_4bit or config.reference_in_4bit:
        _check_4bit()
    places = check_models(config, locate)
    for field in ("model", "reference", "adapter"):
        place = getattr(places, field)
        if place and Path(place).is_dir() and Path(place).samefile(config.output_dir):
            raise SpecInvalid.at("output_dir", say("output_is_source", kind=say(f"kind.{field}")))
    if config.load_in_4bit or config.reference_in_4bit:
        _check_widths(places.model)
    return places


def check_models(config: PreferenceConfig, locate: Locate) -> Places:
    """The part of `check` that is the same on any machine. Raises as `check` does."""
    places = Places(
        model=locate(config.model_name),
        reference=locate(config.ref_model_name or config.model_name),
        adapter=locate(config.adapter_name) if config.adapter_name else None,
    )
    model = _model_config(places.model, "model_name")
    if places.reference != places.model:
        reference = _model_config(places.reference, "ref_model_name")
        ours, theirs = _vocabulary(model, places.model), _vocabulary(reference, places.reference)
        if ours != theirs:
            names = {"reference": config.ref_model_name, "model": config.model_name}
            raise ModelRefused.at("ref_model_name", say("reference_vocabulary", theirs=theirs, ours=ours, **names))
        _checked_skeleton(reference, places.reference, "ref_model_name")
    longest = getattr(model, "max_position_embeddings", None)
    if longest and config.max_length > longest:
        found = {"value": config.max_length, "limit": longest}
        raise SpecInvalid.at("max_length", say("max_length_too_long", model=config.model_name, **found))
    skeleton = _checked_skeleton(model, places.model, "model_name")
    if places.adapter:
        _check_adapter(places.adapter, skeleton, places.model)
        lora_options.check(config, places.adapter)
    elif config.use_lora:
        _check_targets(config, skeleton)
    return places


def refusals_without_gpu(config: PreferenceConfig, places: Places) -> Iterator[SpecInvalid]:
    """What a run would be refused for on a machine without a GPU, as far as it can be known on any machine."""

    def check_fp16(_: TrainingSettings) -> None:
        if config.effective_precision == "fp16":
            raise SpecInvalid.at("precision", say("fp16_needs_gpu"))

    def check_widths(_: TrainingSettings) -> None:
        if config.load_in_4bit or config.reference_in_4bit:
            _check_widths(places.model)

    for check in (check_fp16, optimizers.check_paged, check_widths):
        try:
            check(config)
        except SpecInvalid as refusal:
            yield refusal


def check_validation(config: TrainingSettings, rows: Sequence[Row], observer: Observer) -> None:
    """Raises `SpecInvalid` if an option needs validation data, or pairs in it, and there are none."""
    if rows:
        metric = config.early_stopping_metric
        compares_pairs = metric in config.metrics_of_pairs
        if config.early_stopping_patience and compares_pairs and not pair_places(rows):
            raise SpecInvalid.at("early_stopping_metric", say("stopping_metric_needs_pairs", metric=metric))
        return
    if config.early_stopping_patience:
        raise SpecInvalid.at("early_stopping_patience", say("stopping_needs_validation"))
    if config.sample_prompts:
        observer.warning("no_samples", say("no_samples"))


def warn_of_clamp(config: TrainingSettings, observer: Observer) -> None:
    """Warns if the cap lowers the learning rate."""
    if config.effective_learning_rate < config.learning_rate:
        rates = {"cap": config.learning_rate_cap, "used": config.effective_learning_rate}
        observer.warning("learning_rate_clamped", say("learning_rate_clamped", asked=config.learning_rate, **rates))


def check_tokenizer(tokenizer: Any, path: str) -> None:
    """Raises `ModelRefused` if the tokenizer knows more tokens than the model."""
    vocabulary = _vocabulary(_model_config(path, "model_name"), path)
    if len(tokenizer) > vocabulary:
        counts = {"tokens": len(tokenizer), "vocabulary": vocabulary}
        raise ModelRefused.at("model_name", say("tokenizer_too_large", model=path, **counts))


def _check_processes() -> None:
    """Refuses several processes: each would train separately and overwrite the others' checkpoints in `output_dir`."""
    for name in _WORLD_SIZES:
        value = os.environ.get(name, "")
        if value.strip() not in ("", "0", "1"):
            raise SpecInvalid(say("several_processes", name=name, value=value))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
        if count > 1:
            raise SpecInvalid(say("several_torch_processes", count=count))


def _check_devices() -> None:
    """transformers would spread one process over all visible GPUs (DataParallel), which TRL's losses do not support."""
    count = torch.cuda.device_count()
    if count > 1:
        raise SpecInvalid(say("several_gpus", count=count))


def _check_reporters(config: TrainingSettings) -> None:
    known = trackers.installed() if config.report_to else []
    for name in config.report_to:
        if name not in known:
            _, advice = trackers.PACKAGES[name]
            raise NotInstalled.at("report_to", say("reporter_not_installed", name=name, package=advice))


def _check_output_dir(output_dir: str) -> None:
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        sentence = say("output_unwritable", directory=output_dir, problem=str(error.strerror))
        raise SpecInvalid.at("output_dir", sentence) from error


def _check_4bit() -> None:
    """Tries one 4-bit layer, forward and backward, on the device that will be used."""
    try:
        # On a device without its kernels, this can raise anything.
        import bitsandbytes

        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
        given = torch.ones(2, 64, device=device, requires_grad=True)
        layer(given).sum().backward()
        works = given.grad is not None and bool(torch.isfinite(given.grad).all())
    except ModuleNotFoundError as error:
        raise NotInstalled.at("load_in_4bit", say("quantization_not_installed", package=str(error.name))) from error
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise SpecInvalid.at("load_in_4bit", say("quantization_broken", problem=problem)) from error
    if not works:
        raise SpecInvalid.at("load_in_4bit", say("quantization_not_finite"))


def _model_config(path: str, field: str) -> Any:
    refuse_adapter(path, field)
    with loading(path, field):
        found = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if Path(path).is_dir() and not model_files.weight_files(path):
        raise ModelRefused.at(field, say("model_no_weights", model=path))
    return found


def _vocabulary(config: Any, path: str) -> int:
    found = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(found, int):
        raise ModelRefused(say("model_no_vocabulary", model=path))
    return found


def _skeleton(config: Any, path: str, field: str) -> Any:
    """The model that a configuration describes, without weights."""
    with loading(path, field), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _checked_skeleton(config: Any, path: str, field: str) -> Any:
    """As `_skeleton`, but raises `ModelRefused` if the files lack weights that the configuration asks for."""
    skeleton = _skeleton(config, path, field)
    weight_headers.check(skeleton, path, field)
    return skeleton


def _check_adapter(path: str, skeleton: Any, base_path: str) -> None:
    with loading(path, "adapter_name", needs_weights=False):
        found = PeftConfig.from_pretrained(path)

    def refused(code: str, **values: Any) -> ModelRefused:
        return ModelRefused.at("adapter_name", say(code, adapter=path, **values))

    kind = str(getattr(found.peft_type, "value", found.peft_type))
    if kind != "LORA":
        raise refused("adapter_not_lora", type=kind)
    for name in ("modules_to_save", "trainable_token_indices"):
        if getattr(found, name, None):
            raise refused("adapter_whole_weights", name=name)
    if getattr(found, "layer_replication", None):
        raise refused("adapter_replicates_layers")
    if getattr(found, "alora_invocation_tokens", None):
        raise refused("adapter_alora")
    alpha = getattr(found, "lora_alpha", None)
    if not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha > 0):
        raise refused("adapter_alpha", value=repr(alpha))
    drawn = getattr(found, "init_lora_weights", True)
    if isinstance(drawn, str) and drawn not in _PLAIN_STARTS:
        raise refused("adapter_moved_base", value=drawn)
    if getattr(found, "bias", "none") != "none":
        raise refused("adapter_trains_biases")
    targets: Any = getattr(found, "target_modules", None) or ()
    if not isinstance(targets, str | list | tuple | set):
        raise refused("adapter_targets_type", value=repr(targets))
    if not isinstance(targets, str) and any(str(target).split(".")[-1] == "lm_head" for target in targets):
        raise refused("adapter_adapts_head")
    model_files.check(path, "adapter_name")
    adapters.check_file(path, skeleton, base_path)


def _check_targets(config: TrainingSettings, skeleton: Any) -> None:
    """Each name must match a linear layer or the embeddings: peft ignores unmatched names if another one matches."""
    targets = config.lora_target_modules
    if isinstance(targets, str):
        return
    fitting = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    unknown = [target for target in targets if not _named(target, fitting)]
    if unknown:
        modules = [name for name, _ in skeleton.named_modules()]
        reasons = [
            say("target_wrong_layer" if _named(target, modules) else "target_not_in_model", target=target)
            for target in unknown
        ]
        known = sorted({name.split(".")[-1] for name in fitting} - {"lm_head"})
        details = [Detail("lora_target_modules", reason) for reason in reasons]
        raise SpecInvalid(say("targets_unknown", reasons=reasons, known=known), details)


def _named(target: str, names: Iterable[str]) -> bool:
    """Whether peft would match a module with a name: a whole path, or its end."""
    return any(name == target or name.endswith(f".{target}") for name in names)


def _check_widths(path: str) -> None:
    """bitsandbytes packs rows in blocks of 64; its CPU kernels fail, late in training, if a row is not a multiple of 64."""
    if torch.cuda.is_available():
        return
    layers = _linear_layers(_skeleton(_model_config(path, "model_name"), path, "model_name"))
    odd = [name for name, layer in layers.items() if layer.in_features % _BLOCK]
    if odd:
        layer = {"block": _BLOCK, "layer": odd[0], "width": layers[odd[0]].in_features}
        raise SpecInvalid.at("load_in_4bit", say("width_not_in_blocks", model=path, **layer))


def _linear_layers(skeleton: Any) -> dict[str, nn.Linear]:
    """The linear layers of a model by name."""
    return {name: module for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)}
