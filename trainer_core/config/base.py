"""The fields that every method has, and the facts that each method states about itself. Torch-free."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from trainer_core.config.units import Unit
from trainer_core.row_rules import PAIRS, Kind
from trainer_core.wording import Message, say

Rows = Literal["labels", "pairs"]
"""What a method's loss is computed from: labelled single answers, or pairs of a chosen and a rejected answer."""

Reward = Literal["summed", "averaged"]
"""Whether a method sums an answer's log-ratio to the reference over its tokens, or averages it."""

Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor"]
"""Names from transformers' `OptimizerNames`."""

# Arguments of `apply_chat_template` other than the template's own options.
_TEMPLATE_INPUTS = {
    "self",
    "messages",
    "conversation",
    "conversations",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}

Positive = Annotated[float, Field(gt=0)]
# As wide as the database's integer columns.
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Steps = Annotated[PositiveInt, Unit("steps")]


def _named_trackers(value: Any) -> Any:
    """Accepts one name or `none`, as transformers does. Not `all`, which would mean whatever a worker has installed."""
    if value in ("none", ["none"]):
        return []
    if value in ("all", ["all"]):
        raise ValueError(say("tracker_all"))
    return [value] if isinstance(value, str) else value


def _named_modules(value: Any) -> Any:
    """Makes a single name a list of one: peft would read a string as a pattern."""
    if not isinstance(value, str) or value == "all-linear":
        return value
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", value):
        raise ValueError(say("module_name_invalid", value=value))
    return [value]


Tracker = Literal["tensorboard", "wandb", "mlflow"]
_TrackerList = Annotated[list[Tracker], Field(max_length=8)]
Trackers = Annotated[
    _TrackerList, BeforeValidator(_named_trackers, json_schema_input_type=_TrackerList | Tracker | Literal["none"])
]
_ModuleName = Annotated[str, Field(max_length=200)]
# More than the largest known models have linear layers outside of their experts.
_ModuleNames = Annotated[list[_ModuleName], Field(max_length=2000)]
Targets = Annotated[
    _ModuleNames | Literal["all-linear"],
    BeforeValidator(_named_modules, json_schema_input_type=_ModuleNames | _ModuleName),
]
Prompt = Annotated[str, Field(max_length=20_000)]
TemplateOption = bool | int | float | Annotated[str, Field(max_length=1000)] | None


def _one_reason(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Replaces the errors of a union's members with a single error that names all of them."""
    try:
        return check(value)
    except ValidationError as error:
        raise ValueError(say("interval_invalid")) from error


Interval = Annotated[
    PositiveInt | Annotated[float, Field(gt=0, lt=1)] | Literal["epoch"],
    WrapValidator(_one_reason),
    Unit("steps"),
]
"""Optimizer steps, a share of all steps, or `epoch`; `schedule.interval` converts it to steps."""


class TrainingSettings(BaseModel):
    """The settings that every method has. Unknown fields, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=())

    method_name: ClassVar[str]
    """The value of a spec's `method`, and the name of the method's file in `trainer_core.methods`."""
    title: ClassVar[str]
    """As people write it, e.g. `SimPO`. The names of the method's classes start with it."""
    full_name: ClassVar[str]
    paper: ClassVar[str]
    """The arXiv identifier."""
    headline: ClassVar[bool] = False
    """Whether introductions, the demo and the benchmarks include it."""
    rows: ClassVar[Rows]
    loss_needs_reference: ClassVar[bool] = True
    reward: ClassVar[Reward] = "summed"
    """What margins and comparisons are computed from."""
    early_stopping_metrics: ClassVar[dict[str, bool]]
    """What `early_stopping_metric` may name, and whether higher is better."""
    metrics_of_pairs: ClassVar[tuple[str, ...]] = ()
    """Those of `early_stopping_metrics` that rows labelled one by one do not have."""
    loss_fields: ClassVar[tuple[str, ...]]
    """Fields that the loss depends on, in the metadata file's order."""
    newer_fields: ClassVar[tuple[str, ...]] = ()
    """Those that metadata and `_get_method_specific_args` leave out at their default: the contract is older."""
    main_fields: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "learning_rate_cap",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "max_prompt_length",
        "use_lora",
        "lora_r",
        "eval_steps",
    )
    """Fields that a form shows first, besides those of the loss."""
    example: ClassVar[dict[str, Any]] = {}
    """Fields of `sample_run`, besides those that every method has there."""

    model_name: str = Field(
        min_length=1, max_length=200, description="The model to train, e.g. `Qwen/Qwen2.5-0.5B-Instruct`."
    )
    ref_model_name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="The reference model; `null` uses the model itself, as it was before training.",
    )
    adapter_name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="A LoRA adapter to continue training. Its own rank, alpha and target modules apply.",
    )
    adapter_reference: Literal["adapter", "base"] = Field(
        "adapter",
        description="With `adapter_name`, the reference: `adapter`, a frozen copy of it, or `base`, the model without it.",
    )
    beta: Positive = Field(0.1, le=100, description="Strength of the pull towards the reference (IPO: the paper's τ).")
    max_prompt_length: Annotated[PositiveInt, Unit("tokens")] = Field(256, description="Maximum prompt length, in tokens.")
    max_length: Annotated[int, Unit("tokens")] = Field(
        512, ge=8, le=2**31 - 1, description="Maximum length of a prompt with its completion, in tokens."
    )
    on_overlong: Literal["reject", "drop", "truncate"] = Field(
        "truncate",
        description="What to do with rows over the limits: `reject` fails before training, `drop` leaves them out, "
        "`truncate` cuts the start of the prompt and the end of the completion. Every cut and drop is reported.",
    )
    apply_chat_template: bool | Literal["auto"] = Field(
        "auto", description="Render plain prompts as chat turns; `auto` does so if the tokenizer has a chat template."
    )
    system_prompt: str | None = Field(
        None,
        min_length=1,
        max_length=20_000,
        description="System message for conversations that have none; `null` leaves it to the chat template.",
    )
    chat_template_kwargs: dict[str, TemplateOption] = Field(
        default_factory=dict,
        max_length=20,
        description='Options for the chat template, such as `{"enable_thinking": false}` for Qwen3.',
    )
    special_tokens_in_text: Literal["split", "refuse", "allow"] = Field(
        "split",
        description="What to do with control tokens in the text of rows and prompts: `split` encodes them as plain text, "
        "`refuse` fails before training, `allow` encodes them as control tokens. Affected rows are reported.",
    )

    use_lora: bool = Field(True, description="Train LoRA adapters; `false` trains all weights.")
    lora_r: int = Field(16, ge=1, le=1024, description="Rank of the LoRA adapters.")
    lora_alpha: Positive = Field(32.0, le=10_000, description="The adapters' output is scaled by `lora_alpha / lora_r`.")
    lora_target_modules: Targets = Field(
        "all-linear",
        description="Modules that get an adapter: a name, a list or `all-linear`; also `embed_tokens`, never `lm_head`.",
    )
    lora_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout on the adapters' inputs during training. Above 0, the run cannot be accelerated.",
    )
    use_rslora: bool = Field(False, description="Rank-stabilised LoRA: scale by `lora_alpha / sqrt(lora_r)`.")
    use_dora: bool = Field(False, description="DoRA: train the magnitude of each weight row as well as LoRA's direction.")

    load_in_4bit: bool = Field(
        False,
        description="Keep the frozen weights in 4-bit NF4: with LoRA, the base model and its reference; in full "
        "fine-tuning, only the reference.",
    )
    ref_load_in_4bit: bool | None = Field(
        None,
        description="Keep the reference in 4-bit NF4; `null` follows `load_in_4bit`. If they differ, a copy is loaded.",
    )

    learning_rate: Positive = Field(1e-6, le=1, description="Peak learning rate, before the cap.")
    learning_rate_cap: Positive | None = Field(
        1e-6,
        le=1,
        description="Upper limit of the learning rate; `null` lifts it. A warning reports a rate that was lowered to it.",
    )
    num_train_epochs: Annotated[Positive, Unit("epochs")] = Field(1.0, le=1000, description="Passes over the training rows.")
    max_steps: Steps | None = Field(None, description="Number of optimizer steps; overrides `num_train_epochs`.")
    per_device_train_batch_size: Annotated[int, Unit("rows")] = Field(4, ge=1, le=1024, description="Rows per forward pass.")
    per_device_eval_batch_size: Annotated[int, Unit("rows")] = Field(
        8, ge=1, le=1024, description="Rows or pairs per forward pass during evaluation."
    )
    gradient_accumulation_steps: Annotated[int, Unit("passes")] = Field(
        4, ge=1, le=4096, description="Forward passes per optimizer step."
    )
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps over which the learning rate rises to its peak."
    )
    warmup_steps: Annotated[int | None, Unit("steps")] = Field(
        None,
        ge=0,
        le=2**31 - 1,
        description="Steps over which the learning rate rises to its peak; sets `warmup_ratio` to 0.",
    )
    lr_scheduler_type: Literal["linear", "cosine", "cosine_with_min_lr", "constant", "constant_with_warmup"] = Field(
        "linear", description="How the learning rate changes after warm-up."
    )
    min_lr_rate: float | None = Field(
        None, gt=0, lt=1, description="With `cosine_with_min_lr`: the final learning rate, as a share of the peak."
    )
    optim: Optimizer = Field(
        "adamw_torch_fused",
        description="Optimizer, as transformers names it. `8bit` and `paged` need bitsandbytes, `paged` also a GPU.",
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the running mean of gradients.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: decay of the running mean of squared gradients.")
    adam_epsilon: Positive = Field(1e-8, le=1, description="AdamW: added to the denominator of each update.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW weight decay.")
    max_grad_norm: Positive = Field(1.0, le=1000, description="Gradients are clipped to this norm.")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed for data order, adapter initialisation and sampling.")

    logging_steps: Steps = Field(10, description="Optimizer steps between metric points.")
    eval_steps: Interval = Field(
        500, description="Optimizer steps between evaluations; below 1, a share of all steps; `epoch`, once per epoch."
    )
    save_steps: Interval = Field(
        500, description="Optimizer steps between checkpoints; below 1, a share of all steps; `epoch`, once per epoch."
    )
    save_total_limit: Annotated[int, Unit("checkpoints")] = Field(
        2, ge=1, le=100, description="How many checkpoints to keep."
    )
    eval_on_start: bool | None = Field(
        None, description="Evaluate before the first step; `null` does so if there is validation data."
    )
    validation_split: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the training rows to set aside by seed for validation, if there is no validation data.",
    )

    early_stopping_patience: Annotated[PositiveInt | None, Unit("evaluations")] = Field(
        None,
        description="Stop if `early_stopping_metric` has not improved for this many evaluations, and save the best model.",
    )
    early_stopping_metric: str = Field(
        "loss", max_length=100, description="Validation metric that decides when to stop, without the prefix `eval_`."
    )
    early_stopping_threshold: float = Field(0.0, ge=0, le=1e6, description="Smallest change that counts as an improvement.")
    sample_generations: Annotated[int, Unit("prompts")] = Field(
        2, ge=0, le=100, description="How many validation prompts the model answers at each evaluation."
    )
    sample_prompts: list[Prompt] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Prompts to answer at each evaluation, instead of validation prompts.",
    )
    sample_max_length: Annotated[int, Unit("tokens")] = Field(
        64, ge=1, le=4096, description="Maximum number of new tokens per sample answer."
    )
    review_rows: Annotated[int, Unit("rows")] = Field(
        64,
        ge=0,
        le=1000,
        description="At most this many held-out answers are scored after the last step to find out what the run learned; "
        "0 scores none.",
    )
    report_to: Trackers = Field(
        default_factory=list,
        description="Where else to send metrics, as a name or a list; `none` for nowhere else. Each needs its package and "
        "its own settings.",
    )

    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="`auto` is bf16 if the device supports it, otherwise fp32."
    )
    bf16: bool | None = Field(None, description="Same as `precision: bf16`; must not contradict `precision`.")
    fp16: bool | None = Field(None, description="Same as `precision: fp16`; must not contradict `precision`.")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        True,
        description="Recompute activations to save memory; `auto` does so only if an estimate says that they will not fit.",
    )
    acceleration: Literal["auto", "off"] = Field(
        "auto",
        description="`auto` computes a prompt once for all answers that share it and skips padding, where the model allows "
        "it; losses and gradients differ only by rounding. `off` uses TRL's own computation.",
    )
    dataloader_num_workers: Annotated[int, Unit("processes")] = Field(
        0, ge=0, le=64, description="Processes that prepare batches."
    )
    dataloader_pin_memory: bool = Field(True, description="Pin host memory for copies to a GPU.")

    @classmethod
    def sample_run(cls) -> dict[str, Any]:
        """Fields with which the shipped model learns something from the sample data within a minute on two cores."""
        return {
            # A model of a million parameters learns at a rate that would ruin a large one, so the cap is lifted.
            "learning_rate": 1e-3,
            "learning_rate_cap": None,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "max_steps": 60,
            "eval_steps": 30,
            **cls.example,
        }

    @classmethod
    def metadata_fields(cls) -> tuple[str, ...]:
        """Fields that the metadata file records."""
        return (*cls.loss_fields, "max_prompt_length", "max_length")

    @classmethod
    def stated(cls, names: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields to report, with their values: those in `values`, without `newer_fields` that have their defaults."""
        known = {name: values[name] for name in names if name in values}
        return {
            name: value
            for name, value in known.items()
            if name not in cls.newer_fields or value != cls.model_fields[name].default
        }

    @classmethod
    def takes(cls, kind: Kind) -> bool:
        """Whether the method can train on rows of a kind. Pairs suit every method: each is also two labelled answers."""
        return kind == PAIRS or cls.rows == "labels"

    @property
    def preference_method(self) -> str:
        """The method's name, e.g. `kto`."""
        return self.method_name

    @property
    def trains_without_reference_copy(self) -> bool:
        """Whether the config forbids a copy of the reference besides the model being trained."""
        return False

    @property
    def weighs_confidence(self) -> bool:
        """Whether each row's loss is multiplied by its `confidence`."""
        return False

    @property
    def reference_in_4bit(self) -> bool:
        """Whether the reference is held in 4 bit."""
        return self.load_in_4bit if self.ref_load_in_4bit is None else self.ref_load_in_4bit

    @property
    def reference_kind(self) -> Literal["base", "adapter", "model"]:
        """The reference: the policy's `base`, or its `adapter` as it was, without a second copy; or another `model`."""
        is_other = self.ref_model_name not in (None, self.model_name) or self.reference_in_4bit != self.load_in_4bit
        if is_other or not self.use_lora:
            return "model"
        return "adapter" if self.adapter_name and self.adapter_reference == "adapter" else "base"

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate that is used: `learning_rate`, at most `learning_rate_cap`."""
        return min(self.learning_rate, self.learning_rate_cap or self.learning_rate)

    @property
    def lora_scaling(self) -> float:
        """LoRA's factor on an adapter's output; 1 if all weights train."""
        if not self.use_lora:
            return 1.0
        return self.lora_alpha / (math.sqrt(self.lora_r) if self.use_rslora else self.lora_r)

    @property
    def plain_path_because(self) -> Message | None:
        """Why the settings rule out acceleration; None if they do not."""
        if self.acceleration == "off":
            return say("plain_off")
        if self.lora_dropout:
            return say("plain_dropout")
        return None

    @property
    def effective_precision(self) -> Literal["auto", "bf16", "fp16", "fp32"]:
        """`precision` with `bf16` and `fp16` taken into account."""
        if self.bf16 or self.fp16:
            return "bf16" if self.bf16 else "fp16"
        return "fp32" if self.precision == "auto" and self.bf16 is False else self.precision

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigns, or restores the settings on an error: pydantic checks them together only after it has assigned."""
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValidationError:
            for field, known in before.items():
                object.__setattr__(self, field, known)
            raise

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(say("prompt_length_too_long", prompt=self.max_prompt_length, whole=self.max_length))
        asked = {name for name, flag in (("bf16", self.bf16), ("fp16", self.fp16)) if flag}
        refused = {name for name, flag in (("bf16", self.bf16), ("fp16", self.fp16)) if flag is False}
        if len(asked) == 2:
            raise ValueError(say("precision_both"))
        if (asked and self.precision not in ("auto", *asked)) or self.precision in refused:
            flags = [f"{name}={'true' if name in asked else 'false'}" for name in sorted(asked | refused)]
            raise ValueError(say("precision_contradicts", precision=self.precision, flags=flags))
        targets = self.lora_target_modules
        if isinstance(targets, list) and any(target.split(".")[-1] == "lm_head" for target in targets):
            raise ValueError(say("targets_name_head"))
        if any(len(name) > 100 for name in self.chat_template_kwargs):
            raise ValueError(say("template_option_too_long"))
        if taken := _TEMPLATE_INPUTS & self.chat_template_kwargs.keys():
            raise ValueError(say("template_options_taken", names=sorted(taken)))
        if self.adapter_name and not self.use_lora:
            raise ValueError(say("needs_lora", name="adapter_name"))
        if self.early_stopping_metric not in self.early_stopping_metrics:
            metrics = {"known": list(self.early_stopping_metrics), "value": self.early_stopping_metric}
            raise ValueError(say("stopping_metric_unknown", **metrics))
        return self

    @model_validator(mode="after")
    def _optimizer_consistent(self) -> Self:
        for name in ("lora_dropout", "use_rslora", "use_dora"):
            if getattr(self, name) and not self.use_lora:
                raise ValueError(say("needs_lora", name=name))
        if self.optim == "adafactor":
            for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(say("option_of_adamw", name=name))
        has_floor = self.lr_scheduler_type == "cosine_with_min_lr"
        if has_floor and self.min_lr_rate is None:
            raise ValueError(say("floor_missing"))
        if self.min_lr_rate is not None and not has_floor:
            raise ValueError(say("floor_unused", value=self.lr_scheduler_type))
        if self.warmup_steps is not None:
            if self.warmup_ratio and "warmup_ratio" in self.model_fields_set:
                raise ValueError(say("warmup_twice"))
            if self.warmup_steps and self.lr_scheduler_type == "constant":
                raise ValueError(say("warmup_unused"))
            # The stored settings say what is used, and can be read again. Assigning would validate again.
            object.__setattr__(self, "warmup_ratio", 0.0)
        return self
