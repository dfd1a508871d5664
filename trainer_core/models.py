"""Models: loading, precision, 4-bit weights, LoRA adapters.

Loads safetensors only, and never runs code from a model.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    set_seed,
)

from trainer_core import adapters, model_files, weight_headers
from trainer_core.config import TrainingSettings
from trainer_core.errors import ModelRefused, SpecInvalid
from trainer_core.loading import loading
from trainer_core.reference import REFERENCE_ADAPTER, TRAINED_ADAPTER
from trainer_core.wording import say

Precision = Literal["bf16", "fp16", "fp32"]
Locate = Callable[[str], str]
"""From a model's name to a directory or hub name that can be loaded."""

# (limit, used) of cgroup versions 2 and 1, as a container sees its own.
_CONTROL_GROUPS = [
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def free_memory() -> int:
    """Free bytes for a run: on the GPU if there is one, otherwise in the machine or its control group."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = psutil.virtual_memory().available
    for limit, used in _CONTROL_GROUPS:
        try:
            left = int(limit.read_text(encoding="utf-8")) - int(used.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no such group, or no limit
            continue
        free = min(free, max(0, left))
    return free


def same_name(name: str) -> str:
    """The `Locate` of the library: a name is already a directory or a hub name."""
    return name


def resolve_precision(settings: TrainingSettings) -> Precision:
    """The precision that this machine will use. Raises `SpecInvalid` if it does not support the requested one."""
    asked = settings.effective_precision
    has_gpu = torch.cuda.is_available()
    if asked == "auto":
        return "bf16" if has_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and not has_gpu:
        raise SpecInvalid.at("precision", say("fp16_needs_gpu"))
    return asked


def weights_dtype(use_lora: bool, precision: Precision) -> torch.dtype:
    """The dtype of the weights: `precision` with LoRA; float32 if they train, with mixed-precision arithmetic.

    The reference uses the policy's dtype: otherwise their log-probabilities would differ by rounding before the first step.
    """
    return DTYPES[precision] if use_lora else torch.float32


def answering_dtype(path: str) -> torch.dtype:
    """The dtype in which a model answers: the one that its config.json names, as other loaders use; otherwise float32.

    Raises `ModelNotFound` or `ModelRefused`.
    """
    with loading(path):
        named = str(AutoConfig.from_pretrained(path, trust_remote_code=False).dtype).removeprefix("torch.")
    return next((dtype for dtype in DTYPES.values() if dtype_name(dtype) == named), torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as configurations write it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model. Raises `ModelNotFound` or `ModelRefused`."""
    with loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ModelRefused.at("model_name", say("tokenizer_no_end", model=path))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: str, dtype: torch.dtype, in_4bit: bool = False) -> Any:
    """A causal language model on the best device of this machine. Raises `ModelNotFound` or `ModelRefused`."""
    refuse_adapter(path, "model_name")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        # For the whole process: cuDNN's attention, PyTorch's first choice on newer cards, takes longer to prepare for a new
        # shape than a step takes, and here each batch and each generated token has a new shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
    options: dict[str, Any] = {}
    if in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options = {"quantization_config": quantization, "device_map": {"": device}}
    with loading(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=_attention(AutoConfig.from_pretrained(path, trust_remote_code=False)),
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    if info["missing_keys"]:
        raise weight_headers.lacks(path, info["missing_keys"])
    return _keep_packing(model) if in_4bit else model.to(device)


def _attention(config: Any) -> str:
    """SDPA, or transformers' own if the model cannot use it: Gemma 2 caps its attention scores."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(kind, "_supports_sdpa", True) else "eager"


def _keep_packing(model: Any) -> Any:
    """Prevents bitsandbytes from repacking 4-bit weights.

    On CPUs with AVX512-BF16 it repacks them in the first pass without gradients and rounds their scales to bfloat16: the
    model would change between a scoring pass and a training pass, and the reference with it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def refuse_adapter(path: str, field: str) -> None:
    """Raises `ModelRefused` if the named model is an adapter."""
    if model_files.is_adapter(path):
        raise ModelRefused.at(field, say("model_is_adapter", name=path, field=field))


def load_policy(settings: TrainingSettings, path: str, adapter_path: str | None, precision: Precision) -> Any:
    """The model to train: the base with new LoRA adapters or with an adapter to continue, or all weights in float32.

    If the continued adapter is its own reference, it has a frozen copy named `REFERENCE_ADAPTER`.
    """
    in_4bit = settings.load_in_4bit and settings.use_lora
    model = load_model(path, weights_dtype(settings.use_lora, precision), in_4bit)
    return _called(_adapted(settings, model, adapter_path), settings.model_name) if settings.use_lora else model


def _called(policy: Any, base_name: str) -> Any:
    """The model, whose adapters are saved with their base's name instead of a directory on this machine."""
    for adapter in policy.peft_config.values():
        adapter.base_model_name_or_path = base_name
    # peft would ask the hub at every save whether the base with that name has embeddings of another size.
    policy.save_pretrained = partial(policy.save_pretrained, save_embedding_layers=False)
    # Each save would take longer for a card that names places on this machine. `model_card` writes one instead.
    policy.create_or_update_model_card = _write_no_card
    return policy


def _write_no_card(output_dir: str) -> None:
    """Stands in for peft's `create_or_update_model_card`."""


def _adapted(settings: TrainingSettings, model: Any, adapter_path: str | None) -> Any:
    if adapter_path:
        policy = adapters.load(model, adapter_path, TRAINED_ADAPTER, is_trainable=True)
        if settings.reference_kind == "adapter":
            copy_adapter(policy)
        return policy
    # Adapters start at random values, so the seed must be set here for runs to be repeatable.
    set_seed(settings.seed)
    targets = settings.lora_target_modules
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]  # peft scales by alpha / r in float
        target_modules=targets,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        sentence = say("targets_unfit", targets=targets, problem=str(error))
        raise SpecInvalid.at("lora_target_modules", sentence) from error


@torch.no_grad()
def copy_adapter(policy: PeftModel) -> None:
    """Copies the adapter as it is now, frozen, as the reference."""
    policy.add_adapter(REFERENCE_ADAPTER, policy.peft_config[TRAINED_ADAPTER])
    copies = adapters.tensors(policy, REFERENCE_ADAPTER)
    for name, tensor in adapters.tensors(policy, TRAINED_ADAPTER).items():
        copies[name].copy_(tensor)
        copies[name].requires_grad_(False)


def load_reference(path: str, dtype: torch.dtype, in_4bit: bool) -> Any:
    """A frozen model in evaluation mode."""
    return load_model(path, dtype, in_4bit).eval().requires_grad_(False)
