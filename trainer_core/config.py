"""The settings of a preference training: `KTOConfig`, `IPOConfig`, `CPOConfig`.

Each method's own fields are a class of their own (`KTOSettings`, ...), which the job spec of the service shares, so that a
field is described once. Torch-free: importing this module loads pydantic and nothing heavier.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["kto", "ipo", "cpo"]
METHODS: tuple[Method, ...] = ("kto", "ipo", "cpo")

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]


class TrainingSettings(BaseModel):
    """What every method has. Unknown fields, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=())
    method_name: ClassVar[Method]

    model_name: str = Field(
        min_length=1, max_length=200, description="The model to train, e.g. `Qwen/Qwen2.5-0.5B-Instruct`."
    )
    ref_model_name: str | None = Field(
        None, min_length=1, max_length=200, description="The reference model; `null`: the model itself before training."
    )
    beta: Positive = Field(0.1, le=100, description="Strength of the pull towards the reference (IPO: the paper's τ).")
    max_prompt_length: PositiveInt = Field(256, description="Longest prompt, in tokens.")
    max_length: int = Field(512, ge=8, description="Longest prompt with its completion, in tokens.")
    on_overlong: Literal["reject", "drop", "truncate"] = Field(
        "truncate",
        description="Rows over the limits: `reject` fails before training, `drop` leaves them out, `truncate` cuts the "
        "start of the prompt and the end of the completion. Each cut or drop is counted and reported.",
    )
    apply_chat_template: bool | Literal["auto"] = Field(
        "auto", description="Render plain prompts as chat turns; `auto`: when the tokenizer has a chat template."
    )

    use_lora: bool = Field(True, description="Train LoRA adapters; `false` trains all weights.")
    lora_r: int = Field(16, ge=1, le=1024, description="Rank of the LoRA adapters.")
    lora_alpha: Positive = Field(32.0, le=10_000, description="LoRA scaling is `lora_alpha / lora_r`.")
    lora_target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Module names that get an adapter; never `lm_head`."
    )

    learning_rate: Positive = Field(1e-6, le=1, description="Peak learning rate, before the cap.")
    learning_rate_cap: Positive | None = Field(
        1e-6, le=1, description="Upper limit of the learning rate; `null` lifts it. A clamp is reported as a warning."
    )
    num_train_epochs: Positive = Field(1.0, le=1000, description="Passes over the training rows.")
    max_steps: PositiveInt | None = Field(None, description="Optimizer steps; overrides `num_train_epochs`.")
    per_device_train_batch_size: int = Field(4, ge=1, le=1024, description="Rows (KTO) or pairs a forward pass.")
    per_device_eval_batch_size: int = Field(8, ge=1, le=1024, description="Rows or pairs a forward pass in evaluation.")
    gradient_accumulation_steps: int = Field(4, ge=1, le=4096, description="Forward passes an optimizer step.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Course of the learning rate after warm-up."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW weight decay.")
    max_grad_norm: Positive = Field(1.0, le=1000, description="Gradients are clipped to this norm.")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of data order, adapters and sampling.")

    logging_steps: PositiveInt = Field(10, description="Optimizer steps between two metric points.")
    eval_steps: PositiveInt = Field(500, description="Optimizer steps between two evaluations.")
    save_steps: PositiveInt = Field(500, description="Optimizer steps between two checkpoints.")
    save_total_limit: int = Field(2, ge=1, le=100, description="Checkpoints kept.")
    eval_on_start: bool | None = Field(
        None, description="Evaluate before the first step; `null`: when there is validation data."
    )
    validation_split: float | None = Field(
        None, gt=0, lt=1, description="Share of the training rows set apart, by seed, when there is no validation data."
    )

    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="`auto`: bf16 where the device has it, else fp32."
    )
    bf16: bool | None = Field(None, description="The same as `precision: bf16`; must not disagree with `precision`.")
    fp16: bool | None = Field(None, description="The same as `precision: fp16`; must not disagree with `precision`.")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        True, description="Recompute activations to save memory; `auto`: only on a GPU."
    )
    dataloader_num_workers: int = Field(0, ge=0, le=64, description="Processes that prepare batches.")
    dataloader_pin_memory: bool = Field(True, description="Pin host memory for copies to a GPU.")

    @property
    def preference_method(self) -> Method:
        """`kto`, `ipo` or `cpo`."""
        return self.method_name

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate that trains: `learning_rate`, at most `learning_rate_cap`."""
        return min(self.learning_rate, self.learning_rate_cap or self.learning_rate)

    @property
    def effective_precision(self) -> Literal["auto", "bf16", "fp16", "fp32"]:
        """`precision` with `bf16` and `fp16` taken into account."""
        if self.bf16:
            return "bf16"
        return "fp16" if self.fp16 else self.precision

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) must be below max_length ({self.max_length}), "
                "or no token is left for the completion"
            )
        asked = {name for name, flag in (("bf16", self.bf16), ("fp16", self.fp16)) if flag}
        refused = {name for name, flag in (("bf16", self.bf16), ("fp16", self.fp16)) if flag is False}
        if len(asked) == 2:
            raise ValueError("bf16 and fp16 cannot both be true")
        if (asked and self.precision not in ("auto", *asked)) or self.precision in refused:
            raise ValueError(f"precision={self.precision!r} disagrees with bf16={self.bf16}, fp16={self.fp16}")
        targets = self.lora_target_modules
        if isinstance(targets, list) and any(target.split(".")[-1] == "lm_head" for target in targets):
            raise ValueError("lora_target_modules must not name lm_head: the fused loss would ignore its adapter")
        return self


class KTOSettings(TrainingSettings):
    """Kahneman-Tversky Optimization: rows with one completion and a label (arXiv:2402.01306)."""

    method_name: ClassVar[Method] = "kto"

    desirable_weight: Positive = Field(1.0, le=1000, description="Weight of the loss of desirable rows (λ_D).")
    undesirable_weight: Positive = Field(1.0, le=1000, description="Weight of the loss of undesirable rows (λ_U).")
    use_ref_model: bool = Field(
        True, description="`false`: hold no reference copy; the same loss, with the adapter switched off."
    )

    @model_validator(mode="after")
    def _kto_consistent(self) -> Self:
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                "per_device_train_batch_size must be at least 2 for KTO: its KL estimate pairs each row with another"
            )
        if not self.use_ref_model and self.ref_model_name not in (None, self.model_name):
            raise ValueError("use_ref_model=false cannot be combined with another ref_model_name")
        return self


class _PairSettings(TrainingSettings):
    learning_rate: Positive = Field(5e-7, le=1, description="Peak learning rate, before the cap.")
    learning_rate_cap: Positive | None = Field(
        5e-7, le=1, description="Upper limit of the learning rate; `null` lifts it. A clamp is reported as a warning."
    )
    per_device_train_batch_size: int = Field(2, ge=1, le=1024, description="Pairs a forward pass.")
    gradient_accumulation_steps: int = Field(8, ge=1, le=4096, description="Forward passes an optimizer step.")
    eval_steps: PositiveInt = Field(1000, description="Optimizer steps between two evaluations.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Assumed share of pairs whose labels are swapped.")


class IPOSettings(_PairSettings):
    """Identity Preference Optimization: pairs, squared loss (arXiv:2310.12036)."""

    method_name: ClassVar[Method] = "ipo"


class CPOSettings(_PairSettings):
    """Contrastive Preference Optimization: pairs, reference-free, plus NLL of the chosen answer (arXiv:2401.08417)."""

    method_name: ClassVar[Method] = "cpo"

    cpo_alpha: float = Field(1.0, ge=0, le=1000, description="Weight of the chosen answer's NLL.")
    loss_type: Literal["sigmoid", "hinge"] = Field("sigmoid", description="Form of the preference term.")

    @model_validator(mode="after")
    def _cpo_consistent(self) -> Self:
        if self.loss_type == "hinge" and self.label_smoothing > 0:
            raise ValueError("label_smoothing applies to loss_type='sigmoid' only")
        return self


class LibraryPaths(BaseModel):
    """Where the library reads and writes; the service chooses these for a job."""

    dataset_path: str = Field(min_length=1, description="Training rows: JSONL, or JSON with `train` and `validation`.")
    eval_dataset_path: str | None = Field(None, description="Validation rows.")
    output_dir: str = Field("", description="Where the model and checkpoints go; default `./checkpoints/<method>`.")

    def model_post_init(self, context: Any, /) -> None:
        if not self.output_dir and isinstance(self, TrainingSettings):
            object.__setattr__(self, "output_dir", f"./checkpoints/{self.method_name}")


class KTOConfig(LibraryPaths, KTOSettings):
    """Settings of a KTO training with the library. See `KTOSettings`."""


class IPOConfig(LibraryPaths, IPOSettings):
    """Settings of an IPO training with the library. See `IPOSettings`."""


class CPOConfig(LibraryPaths, CPOSettings):
    """Settings of a CPO training with the library. See `CPOSettings`."""


PreferenceConfig = KTOConfig | IPOConfig | CPOConfig
