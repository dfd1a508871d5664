"""A training step by TRL's own trainers and by this library, on one copy of the weights, in turn.

Both sides see the same rows in the same batches, with the same LoRA adapters, seed and precision.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

SIDES = ("stock", "stock_flash", "core")
"""TRL's trainer as it comes, TRL's trainer without cuDNN's attention (GPUs only), and this library."""

_kernel_takes: Any = None


def sides_here() -> list[str]:
    """The sides that differ on this machine."""
    import torch

    return [side for side in SIDES if side != "stock_flash" or torch.cuda.is_available()]


def attention_by(*, kernel: bool, cudnn: bool = False) -> None:
    """Which attention runs on a GPU.

    Args:
        kernel: packed rows use the kernel for rows of varied length where it takes them; else never.
        cudnn: PyTorch may choose cuDNN for everything else, as it does unless told otherwise.
    """
    global _kernel_takes  # noqa: PLW0603
    import torch

    from trainer_core.acceleration import attention

    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    _kernel_takes = _kernel_takes or attention.kernel_takes
    attention.kernel_takes = _kernel_takes if kernel else _never


def _never(query: Any) -> bool:
    return False


@dataclass
class Workload:
    """What both sides train.

    Attributes:
        folder: gets rows and outputs.
        rows: prompt/answer tokens, about.
        batch: rows (KTO) or pairs.
    """

    model: Path
    folder: Path
    method: str
    rows: str
    batch: int
    steps: int
    in_4bit: bool = False
    checkpointing: bool = False
    precision: str = "auto"

    def config(self) -> Any:
        from trainer_core.config import CONFIG_OF

        prompt_tokens, answer_tokens = map(int, self.rows.split("/"))
        kind: Any = CONFIG_OF[self.method]
        return kind(
            model_name=str(self.model),
            dataset_path=str(self.folder / f"{self.method}.jsonl"),
            output_dir=str(self.folder / "out"),
            apply_chat_template=False,
            precision=self.precision,
            load_in_4bit=self.in_4bit,
            gradient_checkpointing=self.checkpointing,
            max_prompt_length=2 * prompt_tokens,
            max_length=2 * (prompt_tokens + answer_tokens),
            per_device_train_batch_size=self.batch,
            gradient_accumulation_steps=1,
            learning_rate=1e-4,
            learning_rate_cap=None,
            max_steps=self.steps,
            logging_steps=1,
            save_steps=10_000,
        )

    def write_rows(self) -> None:
        from benchmarks.gpu.shapes import make_rows

        prompt_tokens, answer_tokens = map(int, self.rows.split("/"))
        make_rows(
            self.folder / f"{self.method}.jsonl",
            self.method,
            rows=self.batch * self.steps,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
        )


@dataclass
class Run:
    """One training: seconds and losses of its steps, tokens of a batch, and the most GPU memory after the warm-up."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_gib: float | None = None
    tokens: float = 0.0

    @property
    def step_s(self) -> float:
        return median(self.seconds)


WARM_UP_STEPS = 2
StepHook = Callable[[int, str], None]
"""Called at each step's begin and end, with the steps done before it."""


class Base:
    """One copy of a model's weights, loaded on first use and shared by the runs that follow."""

    def __init__(self) -> None:
        from trainer_core import models

        self._load = models.load_model
        self._model: Any = None
        self._forward: Any = None
        self._types: dict[str, Any] = {}

    def __call__(self, path: str, dtype: Any, in_4bit: bool = False) -> Any:
        if self._model is None:
            self._model = self._load(path, dtype, in_4bit)
            self._forward = self._model.__dict__.get("forward")
            self._types = {name: weight.dtype for name, weight in self._model.named_parameters()}
        return self._model

    def restore(self) -> None:
        """As it was loaded: no side's changes of it may last."""
        self._model.__dict__.pop("_tafdil_savings", None)
        self._model.__dict__.pop("forward", None)
        if self._forward is not None:
            self._model.forward = self._forward
        self._model.requires_grad_(False)
        for name, weight in self._model.named_parameters():
            # TRL's CPO trainer turns what is not in 4 bit into float32.
            weight.data = weight.data.to(self._types[name])
        for layer in self._model.base_model.layers:
            layer.self_attn.config = self._model.config


def train(side: str, workload: Workload, base: Base, hook: StepHook | None = None) -> Run:
    """Trains by one side; `segments` is this library with its loop over segments in place of the kernel."""
    import gc

    import torch
    from transformers import PrinterCallback

    from trainer_core import PreferenceTrainer, models

    found, clock = Run(), _Clock(hook)
    ours: Any = PreferenceTrainer(workload.config())
    loader = models.load_model
    models.load_model = base  # pyright: ignore[reportAttributeAccessIssue]
    try:
        ours.load()
    finally:
        models.load_model = loader
    report = ours.data_loader.report()["train"]
    found.tokens = report["total_tokens"] / report["rows"] * workload.batch
    # After loading, which has its own opinion.
    attention_by(kernel=side != "segments", cudnn=side in {"stock", "segments"})
    trainer = stock(ours, workload.folder / "stock") if side.startswith("stock") else ours.prepare()
    trainer.add_callback(clock.callback())
    trainer.remove_callback(PrinterCallback)
    torch.manual_seed(0)
    trainer.train()
    if torch.cuda.is_available():
        found.peak_gib = torch.cuda.max_memory_allocated() / 2**30
    found.seconds = [later - earlier for earlier, later in pairwise(clock.times)][WARM_UP_STEPS - 1 :]
    found.losses = [entry["loss"] or math.nan for entry in trainer.state.log_history if "loss" in entry]
    for model in (trainer.model, ours.model):
        if hasattr(model, "unload"):
            model.unload()
    base.restore()
    del trainer, ours
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


class _Clock:
    def __init__(self, hook: StepHook | None) -> None:
        self.times: list[float] = []
        self._hook = hook

    def callback(self) -> Any:
        import torch
        from transformers import TrainerCallback

        clock = self

        class Clock(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if clock._hook:
                    clock._hook(state.global_step, "begin")

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                    if state.global_step == WARM_UP_STEPS:
                        torch.cuda.reset_peak_memory_stats()
                clock.times.append(time.perf_counter())
                if clock._hook:
                    clock._hook(state.global_step - 1, "end")

        return Clock()


def stock(ours: Any, folder: Path) -> Any:
    """TRL's trainer as its documentation uses it, on the rows that ours has planned and the adapters that ours has drawn.

    Args:
        ours: a `PreferenceTrainer` that has loaded; its model is of no use afterwards.
        folder: for what TRL writes.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    from trainer_core.methods import method_of
    from trainer_core.row_rules import FIELDS, LABELLED, PAIRS

    def of_trl(kind: type) -> Any:
        """TRL's own class below ours."""
        return next(each for each in kind.__mro__ if each.__module__.partition(".")[0] == "trl")

    arguments = ours.get_training_arguments()
    shared = [
        "learning_rate",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "warmup_steps",
        "lr_scheduler_type",
        "max_grad_norm",
        "seed",
        "logging_steps",
        "bf16",
        "use_cpu",
        "gradient_checkpointing",
        "beta",
        "max_length",
        "disable_tqdm",
    ]
    options = {name: getattr(arguments, name) for name in shared}
    options |= {"output_dir": str(folder), "save_strategy": "no", "report_to": "none"}
    options |= {"train_sampling_strategy": "sequential", "logging_nan_inf_filter": False}
    method = method_of(ours.config)
    arguments_class = of_trl(method.arguments_class)
    names = FIELDS[LABELLED if ours.config.rows == "labels" else PAIRS]
    adapter = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(ours.model).items()}
    config = ours.config
    lora = LoraConfig(
        r=config.lora_r, lora_alpha=config.lora_alpha, target_modules=config.lora_target_modules, task_type="CAUSAL_LM"
    )
    trainer = of_trl(method.trainer_class)(
        model=ours.model.unload(),
        args=arguments_class(**options, **method.fixed_arguments()),
        train_dataset=Dataset.from_list([{name: row[name] for name in names} for row in ours.data_loader.train]),
        processing_class=ours.tokenizer,
        peft_config=lora,
    )
    set_peft_model_state_dict(trainer.model, adapter)
    return trainer
