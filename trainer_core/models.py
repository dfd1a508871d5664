"""Models: loading, precision, LoRA, the reference, and fingerprints of weights.

Loads safetensors only, and never runs code that a model brings along.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from trainer_core.config import TrainingSettings
from trainer_core.errors import ModelNotFound, ModelRefused, SpecInvalid
from trainer_core.scoring import adapter_off

Precision = Literal["bf16", "fp16", "fp32"]
Locate = Callable[[str], str]
"""From a model's name to a directory or hub name that can be loaded."""

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def same_name(name: str) -> str:
    """The `Locate` of the library: a name is a directory or a hub name already."""
    return name


def resolve_precision(settings: TrainingSettings) -> Precision:
    """The precision that this machine will use. Raises `SpecInvalid` where it cannot do what is asked."""
    asked = settings.effective_precision
    has_gpu = torch.cuda.is_available()
    if asked == "auto":
        return "bf16" if has_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and not has_gpu:
        raise SpecInvalid("fp16 needs a GPU, and there is none here; use precision fp32, bf16 or auto")
    return asked


def weights_dtype(use_lora: bool, precision: Precision) -> torch.dtype:
    """How weights are held: as `precision` says under LoRA; in float32 when they train, with mixed-precision arithmetic.

    The reference is held as the policy is, or their log-probabilities would differ by rounding before the first step.
    """
    return DTYPES[precision] if use_lora else torch.float32


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model. Raises `ModelNotFound` or `ModelRefused`."""
    with _Loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ModelRefused(f"the tokenizer of {path} has no end token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: str, dtype: torch.dtype) -> Any:
    """A causal language model on the best device here. Raises `ModelNotFound` or `ModelRefused`."""
    with _Loading(path):
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


class _Loading:
    """Turns what transformers raises for a missing or unsuitable model into the product's errors."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, OSError | ValueError):
            return
        reason = str(error).strip().splitlines()[0]
        if isinstance(error, OSError) and not Path(self._path).is_dir():
            raise ModelNotFound(f"no model {self._path!r} here: {reason}") from error
        raise ModelRefused(f"the model {self._path!r} cannot be loaded: {reason}") from error


def load_policy(settings: TrainingSettings, path: str, precision: Precision) -> Any:
    """The model to train: base with new LoRA adapters, or all weights in float32 with mixed precision."""
    model = load_model(path, weights_dtype(settings.use_lora, precision))
    if not settings.use_lora:
        return model
    # Adapters are drawn at random, so the seed must be set here for two runs to be the same.
    set_seed(settings.seed)
    targets = settings.lora_target_modules
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]  # peft scales by alpha / r in float
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise SpecInvalid(f"lora_target_modules={targets!r} does not fit the model: {error}") from error


def load_reference(path: str, dtype: torch.dtype) -> Any:
    """A frozen model in evaluation mode."""
    return load_model(path, dtype).eval().requires_grad_(False)


class BaseView:
    """The base of a LoRA model as a model of its own: same tensors, adapters off, no gradients."""

    def __init__(self, policy: PeftModel) -> None:
        self._policy = policy

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in base_tensors(self._policy):
            yield name, parameter.detach()

    def parameters(self) -> Iterator[Tensor]:
        return (parameter for _, parameter in self.named_parameters())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with adapter_off(self._policy):
            return self._policy(*args, **kwargs)

    def __repr__(self) -> str:
        return f"BaseView(of={type(self._policy.get_base_model()).__name__}, device={self.device})"


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights without adapters, under the names that the base model gives them."""
    prefix = "base_model.model."
    for name, tensor in model.named_parameters():
        if "lora_" not in name:
            yield name.removeprefix(prefix).replace(".base_layer.", "."), tensor


def adapter_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The adapters' weights alone."""
    return ((name, tensor) for name, tensor in model.named_parameters() if "lora_" in name)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) over names, shapes and bytes of live tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
