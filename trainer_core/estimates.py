"""How much memory and time a run will take, from the model's shape and the planned rows. Torch-free.

`docs/estimates.md` shows these estimates next to measured runs, with their errors, from which the bands here come.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer_core.config import Optimizer, TrainingSettings
from trainer_core.memory import Shape, activation_bytes
from trainer_core.plan import batch_tokens
from trainer_core.row_rules import Row
from trainer_core.schedule import interval

Precision = Literal["bf16", "fp16", "fp32"]

MEMORY_BAND = (0.8, 1.25)
"""Measured memory was within these multiples of the estimate."""
TIME_BAND_OF_RUNS = (0.7, 1.5)
"""The same for times estimated from earlier runs of the model; below, for times estimated from a device's speed."""
TIME_BAND_OF_DEVICE = (0.5, 2.0)

OPTIMIZER_BYTES: dict[Optimizer, int] = {
    "adamw_torch_fused": 8,
    "adamw_torch": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "paged_adamw_32bit": 8,
    "adafactor": 0,
}
"""State for each trained weight: two moments in float32 or 8 bits. Adafactor keeps sums of rows and columns instead."""

# NF4 with double quantization: 4 bits per weight, and 0.127 for the scales.
_4BIT_BYTES = 0.516
# A process with torch, transformers, TRL and peft, before any weights; on a GPU the CUDA context instead.
_PROCESS_BYTES = {True: 0.5 * 2**30, False: 0.55 * 2**30}
# Logits of a slice of positions, in float32, and what is computed from them.
_LOGITS_AT_ONCE = {True: 2**29, False: 2**27}
_COPIES_OF_LOGITS = 2.5
# Per step, besides arithmetic: Python, kernel launches, the optimizer's bookkeeping.
_SECONDS_A_LAYER = 0.002
# docs/performance.md, "From a submit to the first step": a cold start without its model.
_IMPORT_SECONDS = 6.2
# Of an ordinary disk; weights are read twice, to load them and to check them.
_READ_BYTES_PER_S = 2.5e8
# Forward and backward passes through a trained output layer, in TRL's slices of the vocabulary; measured.
_TRAINED_HEAD_PASSES = 9
_LAYERS_OF: dict[str, tuple[str, str]] = {
    "q_proj": ("hidden", "attention"),
    "k_proj": ("hidden", "keys"),
    "v_proj": ("hidden", "keys"),
    "o_proj": ("attention", "hidden"),
    "gate_proj": ("hidden", "intermediate"),
    "up_proj": ("hidden", "intermediate"),
    "down_proj": ("intermediate", "hidden"),
}


@dataclass(frozen=True)
class Size:
    """A model's weights. LoRA and 4 bit apply to `linear`; `other` is the embeddings, the output layer and the norms."""

    shape: Shape
    linear: int
    other: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Size":
        """From the fields of a `config.json`. Raises `KeyError` if one is missing."""
        shape = Shape.of(config)
        layer = sum(getattr(shape, given) * getattr(shape, made) for given, made in _LAYERS_OF.values())
        embeddings = shape.vocabulary * shape.hidden * (1 if config.get("tie_word_embeddings") else 2)
        return cls(shape, layer * shape.layers, embeddings + (2 * shape.layers + 1) * shape.hidden)

    @property
    def weights(self) -> int:
        return self.linear + self.other

    def held_bytes(self, value_bytes: int, *, in_4bit: bool) -> float:
        """The bytes that the weights take in memory."""
        return self.linear * (_4BIT_BYTES if in_4bit else value_bytes) + self.other * value_bytes

    def adapter_weights(self, settings: TrainingSettings) -> int:
        """Weights of the LoRA adapters that the settings name."""
        names = settings.lora_target_modules
        named = set(_LAYERS_OF) if isinstance(names, str) else {name.split(".")[-1] for name in names}
        targets = named & set(_LAYERS_OF)
        sides = sum(getattr(self.shape, side) for name in targets for side in _LAYERS_OF[name])
        # DoRA: a magnitude for each row of the weight.
        rows = sum(getattr(self.shape, _LAYERS_OF[name][1]) for name in targets) if settings.use_dora else 0
        embeddings = self.shape.vocabulary + self.shape.hidden if "embed_tokens" in named else 0
        return (settings.lora_r * sides + rows) * self.shape.layers + settings.lora_r * embeddings


@dataclass(frozen=True)
class Load:
    """The work that the rows make for a run. Tokens are those that pass through the layers."""

    batches: int
    largest_batch_tokens: int
    tokens: int
    """Per epoch."""
    answer_tokens: int
    """Per epoch: positions that the output layer scores."""
    longest: int
    """Tokens of the longest row."""
    validation_tokens: int
    validation_answer_tokens: int

    @classmethod
    def of(cls, train: Sequence[Row], validation: Sequence[Row], settings: TrainingSettings) -> "Load":
        is_packed = settings.plain_path_because is None
        size = settings.per_device_train_batch_size
        batches = [_batch_tokens(train[start : start + size], is_packed) for start in range(0, len(train), size)]
        return cls(
            batches=len(batches),
            largest_batch_tokens=max(batches),
            tokens=sum(batches),
            answer_tokens=sum(map(_answer_tokens, train)),
            longest=max(len(row["prompt_ids"]) + _answer_tokens(row) for row in train),
            validation_tokens=_batch_tokens(validation, is_packed) if validation else 0,
            validation_answer_tokens=sum(map(_answer_tokens, validation)),
        )


def _batch_tokens(rows: Sequence[Row], is_packed: bool) -> int:
    # KTO also scores a partner's answer after each prompt.
    partners = sum(len(row.get("KL_completion_ids", ())) for row in rows)
    return batch_tokens(rows, is_packed) + partners


def _answer_tokens(row: Row) -> int:
    names = ("completion_ids", "KL_completion_ids", "chosen_ids", "rejected_ids")
    return sum(len(row[name]) for name in names if name in row)


def planned_steps(settings: TrainingSettings, batches: int) -> int:
    """Optimizer steps of a run with this many batches per epoch."""
    return settings.max_steps or math.ceil(settings.num_train_epochs * steps_an_epoch(settings, batches))


def steps_an_epoch(settings: TrainingSettings, batches: int) -> int:
    """Optimizer steps of an epoch with this many batches."""
    # The last step of an epoch takes the remaining batches.
    return max(1, math.ceil(batches / settings.gradient_accumulation_steps))


def evaluations(settings: TrainingSettings, batches: int, *, has_validation: bool) -> int:
    """Evaluations of a run: at its start unless that is off, every `eval_steps`, and at its end.

    Args:
        batches: per epoch.
    """
    if not has_validation:
        return 0
    steps = planned_steps(settings, batches)
    every = interval(settings.eval_steps, steps, steps_an_epoch(settings, batches))
    return (settings.eval_on_start is not False) + math.ceil(steps / every)


def _holds_second_model(settings: TrainingSettings, *, has_validation: bool) -> bool:
    if settings.reference_kind != "model":
        return False
    if not settings.loss_needs_reference:
        return has_validation
    return not settings.trains_without_reference_copy


def memory_parts(
    settings: TrainingSettings, size: Size, load: Load, precision: Precision, *, on_gpu: bool, checkpointing: bool
) -> dict[str, int]:
    """The peak memory of a run in bytes, by purpose."""
    value_bytes = 4 if precision == "fp32" else 2
    held_bytes = value_bytes if settings.use_lora else 4
    trained = size.adapter_weights(settings) if settings.use_lora else size.weights
    tokens = load.largest_batch_tokens
    if checkpointing:
        one = activation_bytes(size.shape, tokens, value_bytes, has_adapters=settings.use_lora) // size.shape.layers
        activations = size.shape.layers * tokens * size.shape.hidden * value_bytes + one
    else:
        activations = activation_bytes(size.shape, tokens, value_bytes, has_adapters=settings.use_lora)
    logits = 4 * size.shape.vocabulary * tokens
    if settings.plain_path_because is None:
        logits = min(logits, _LOGITS_AT_ONCE[on_gpu])
    reference = 0.0
    if _holds_second_model(settings, has_validation=load.validation_tokens > 0):
        reference = size.held_bytes(held_bytes, in_4bit=settings.reference_in_4bit)
    parts = {
        "process": _PROCESS_BYTES[on_gpu],
        "weights": size.held_bytes(held_bytes, in_4bit=settings.load_in_4bit and settings.use_lora),
        # Memory-mapped files: on a CPU they count towards the process, but the system reclaims them when needed.
        "mapped_files": 0 if on_gpu else size.weights * value_bytes,
        "reference": reference,
        "adapters": 4 * trained if settings.use_lora else 0,
        "gradients": 4 * trained,
        "optimizer": OPTIMIZER_BYTES[settings.optim] * trained,
        "activations": activations,
        "logits": _COPIES_OF_LOGITS * logits,
    }
    return {name: int(size) for name, size in parts.items()}


def startup_seconds(size: Size, value_bytes: int) -> float:
    """Seconds from the claim to training, for a run that must import the libraries and read the weights from a disk."""
    return _IMPORT_SECONDS + size.weights * value_bytes / _READ_BYTES_PER_S


@dataclass(frozen=True)
class Work:
    """The arithmetic of a run, in floating-point operations, and its optimizer steps."""

    steps: int
    flops: float
    evaluation_flops: float
    overhead_s: float
    """Seconds spent on other things than arithmetic."""

    def seconds(self, flops_per_s: float, *, is_measured: bool) -> float:
        """Seconds at a given speed. A speed measured in earlier runs already includes their overhead."""
        return (self.flops + self.evaluation_flops) / flops_per_s + (0.0 if is_measured else self.overhead_s)


def work(settings: TrainingSettings, size: Size, load: Load, *, checkpointing: bool) -> Work:
    """What a run computes: each token through the layers, each answer token through the output layer."""
    shape, steps = size.shape, planned_steps(settings, load.batches)
    epochs = steps / steps_an_epoch(settings, load.batches)
    batches = epochs * load.batches
    layers = 2 * size.linear + 2 * shape.layers * shape.attention * load.longest
    head = 2 * shape.hidden * shape.vocabulary
    has_reference = settings.loss_needs_reference
    # Always the gradients of activations; those of weights if they train; activations again with checkpointing.
    passes = 2 + (not settings.use_lora) + checkpointing
    head_passes = 2 if settings.use_lora else _TRAINED_HEAD_PASSES
    flops = epochs * (passes * layers * load.tokens + head_passes * head * load.answer_tokens)
    if has_reference:
        # The reference scores rows once, even if they train several times.
        asked = min(epochs, 1.0) if settings.acceleration != "off" else epochs
        flops += asked * (layers * load.tokens + head * load.answer_tokens)
    forward = layers * load.validation_tokens + head * load.validation_answer_tokens
    # TRL's loss and the method's own metrics, each for the model and its reference.
    times = evaluations(settings, load.batches, has_validation=load.validation_tokens > 0)
    return Work(steps, flops, times * 4 * forward, batches * shape.layers * _SECONDS_A_LAYER * (passes + has_reference))


def speed(
    settings: TrainingSettings, size: Size, load: Load, *, checkpointing: bool, steps: int, seconds: float, on_gpu: bool
) -> dict[str, Any]:
    """What a run reports for later estimates: its speed, from its steps and the seconds that they took."""
    whole = work(settings, size, load, checkpointing=checkpointing)
    flops_per_s = whole.flops / whole.steps * steps / seconds
    return {"steps": steps, "seconds": round(seconds, 3), "flops_per_s": flops_per_s, "on_gpu": on_gpu}
