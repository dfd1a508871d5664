"""`PreferenceTrainer`: KTO, IPO and CPO behind one interface, and the four factories."""

from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from trainer_core.base_trainer import BaseTrainer
from trainer_core.comparison import ModelPair
from trainer_core.config import CPOConfig, IPOConfig, KTOConfig, Method, PreferenceConfig
from trainer_core.errors import ReferenceMismatch
from trainer_core.methods import MODULES
from trainer_core.models import BaseView, Locate, load_reference, same_name, weights_dtype
from trainer_core.observer import Observer
from trainer_core.rows import Row
from trainer_core.scoring import Scores, adapter_off, score

# Two passes over the same weights differ by rounding only; bf16 and fp16 round at about 1e-2 of a summed log-probability.
_AGREEMENT = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}
_ROWS_CHECKED = 4


class PreferenceTrainer(BaseTrainer):
    """Base trainer for preference optimization methods (KTO, IPO, CPO).

    Args:
        config: a `KTOConfig`, `IPOConfig` or `CPOConfig`; its type decides the method.
        locate: from a model's name to what is loaded; the service looks below its models directory.
        observer: receives phases, metrics, warnings and checkpoints.

    Raises:
        TypeError: `config` is none of the three.
    """

    def __init__(self, config: PreferenceConfig, *, locate: Locate = same_name, observer: Observer | None = None) -> None:
        # Callers without a type checker exist.
        if not isinstance(config, KTOConfig | IPOConfig | CPOConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"config must be a KTOConfig, IPOConfig or CPOConfig, not {type(config).__name__}")
        super().__init__(config, locate=locate, observer=observer)
        self.preference_method: Method = self._get_training_method()
        self.ref_model: Any = None
        self._scoring_reference: Any = None
        self._module = MODULES[self.preference_method]

    def _get_training_method(self) -> Method:
        return self.config.preference_method

    # -- reference

    @property
    def reference_name(self) -> str:
        """The name of the model that the policy is compared with."""
        return self.config.ref_model_name or self.config.model_name

    @property
    def _reference_is_base(self) -> bool:
        return self.config.use_lora and self.reference_name == self.config.model_name

    def setup_reference_model(self) -> None:
        """Makes `ref_model`: a frozen view of the base under LoRA, else a second frozen model.

        KTO with `use_ref_model=False` has none.
        """
        self.load()
        if isinstance(self.config, KTOConfig) and not self.config.use_ref_model:
            self.ref_model = None
        elif self.ref_model is None:
            self.ref_model = self._make_reference()

    def _make_reference(self) -> Any:
        if self._reference_is_base:
            return BaseView(self.model)
        return load_reference(self.locate(self.reference_name), weights_dtype(self.config.use_lora, self.precision))

    def _reference_for_scoring(self) -> Any:
        """The reference, also where training holds none; loaded when first needed."""
        if self.ref_model is not None:
            return self.ref_model
        if self._scoring_reference is None:
            self._scoring_reference = self._make_reference()
        return self._scoring_reference

    def check_reference(self) -> None:
        if self.config.ref_model_name not in (None, self.config.model_name):
            return
        policy, reference = self._scores(self.data_loader.train[:_ROWS_CHECKED])
        difference = max((policy[name].logps - reference[name].logps).abs().max().item() for name in policy)
        tokens = max(policy[name].tokens.max().item() for name in policy)
        if difference > _AGREEMENT[self.precision] * max(1.0, tokens / 10):
            raise ReferenceMismatch(
                f"before the first step the reference {self.reference_name!r} must answer as the model does, but "
                f"log-probabilities differ by {difference:.4g} nats"
            )

    # -- training

    def create_trainer(self, dataset: Dataset, training_args: TrainingArguments, callbacks: list[Any]) -> Any:
        """The TRL trainer of the method.

        Args:
            dataset: tokenised and planned rows (`data_loader.train`).
            training_args: from `get_training_arguments()`.
            callbacks: transformers callbacks.
        """
        options: dict[str, Any] = {}
        if self.preference_method != "cpo" and not isinstance(self.ref_model, BaseView):
            options["ref_model"] = self.ref_model
        validation = self.data_loader.validation
        trainer = self._module.trainer_class()(
            model=self.model,
            args=training_args,
            train_dataset=dataset,
            eval_dataset=Dataset.from_list(validation) if validation else None,
            processing_class=self.tokenizer,
            callbacks=callbacks,
            **options,
        )
        if self._reference_is_base and "ref" in self.model.peft_config:
            # TRL takes any adapter for a pretrained one and copies it as the reference. This one is new, so the base with
            # the adapter off is the same reference without the copy.
            self.model.delete_adapter("ref")
        trainer.observer = self.observer
        if isinstance(self.config, IPOConfig):
            trainer.smoothing = self.config.label_smoothing
        if validation:
            trainer.preference_metrics = lambda: self._metrics(validation)
        return trainer

    def _get_method_specific_args(self) -> dict[str, Any]:
        return self._module.method_arguments(self.config)

    def get_training_arguments(self) -> TrainingArguments:
        config = self.config
        self.load()
        on_gpu = torch.cuda.is_available()
        checkpointing = on_gpu if config.gradient_checkpointing == "auto" else config.gradient_checkpointing
        has_validation = bool(self.data_loader.validation)
        arguments = self._module.arguments_class()(
            output_dir=config.output_dir,
            learning_rate=config.effective_learning_rate,
            num_train_epochs=config.num_train_epochs,
            max_steps=config.max_steps or -1,
            per_device_train_batch_size=config.per_device_train_batch_size,
            per_device_eval_batch_size=config.per_device_eval_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            # transformers reads a value below 1 as a share of the steps.
            warmup_steps=config.warmup_ratio,
            lr_scheduler_type=config.lr_scheduler_type,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            logging_steps=config.logging_steps,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if has_validation else "no",
            eval_steps=config.eval_steps,
            eval_on_start=has_validation and config.eval_on_start is not False,
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=config.save_total_limit,
            bf16=self.precision == "bf16",
            fp16=self.precision == "fp16",
            use_cpu=not on_gpu,
            gradient_checkpointing=checkpointing,
            dataloader_num_workers=config.dataloader_num_workers,
            dataloader_pin_memory=config.dataloader_pin_memory and on_gpu,
            remove_unused_columns=False,
            prediction_loss_only=True,
            report_to="none",
            disable_tqdm=True,
            **self._module.trl_arguments(config),
        )
        arguments.label_names = list(self._module.LABEL_NAMES)
        return arguments

    # -- evaluation

    def _scores(self, rows: list[Row]) -> tuple[dict[str, Scores], dict[str, Scores]]:
        names = ("completion", "KL_completion") if self.preference_method == "kto" else ("chosen", "rejected")
        reference = self._reference_for_scoring()
        view = isinstance(reference, BaseView)
        batch_size = self.config.per_device_eval_batch_size
        policy_scores: dict[str, Scores] = {}
        reference_scores: dict[str, Scores] = {}
        for name in names:
            prompts, answers = [row["prompt_ids"] for row in rows], [row[f"{name}_ids"] for row in rows]
            policy_scores[name] = score(self.model, prompts, answers, batch_size)
            with adapter_off(self.model if view else reference):
                reference_scores[name] = score(self.model if view else reference, prompts, answers, batch_size)
        return policy_scores, reference_scores

    def _metrics(self, rows: list[Row]) -> dict[str, float | None]:
        policy, reference = self._scores(rows)
        labels: Tensor | None = None
        if self.preference_method == "kto":
            labels = torch.tensor([row["label"] for row in rows])
        return self._module.metrics(self.config, policy, reference, labels)

    def _evaluation_rows(self, eval_dataset: Any) -> list[Row]:
        if eval_dataset is not None:
            return self.data_loader.prepare(eval_dataset)
        rows = self.data_loader.validation or self.data_loader.held_back
        if not rows:
            self.observer.warning(
                "evaluated_on_training_rows",
                "there is no validation data and too few rows to set some apart: evaluating on training rows",
            )
        return rows or self.data_loader.train

    def evaluate_model(self, eval_dataset: Dataset | Iterable[Row] | None = None) -> dict[str, float | None]:
        """Evaluates the model.

        Args:
            eval_dataset: rows as in a file; default the validation data, else rows set apart before training.

        Returns:
            `eval_loss` (TRL's), TRL's metrics, and those of `compute_preference_metrics` with the prefix `eval_`.
        """
        trainer = self.prepare()
        rows = self._evaluation_rows(eval_dataset)
        during_training = trainer.preference_metrics
        trainer.preference_metrics = lambda: self._metrics(rows)
        try:
            results = trainer.evaluate(eval_dataset=Dataset.from_list(rows))
        finally:
            trainer.preference_metrics = during_training
        return {**{name: value for name, value in results.items() if isinstance(value, int | float | None)}}

    def compute_preference_metrics(self, eval_dataset: Dataset | Iterable[Row]) -> dict[str, float | None]:
        """The method's preference metrics over rows as in a file.

        KTO: `kto_loss`, `desirable_accuracy`, `undesirable_accuracy`, `overall_accuracy`. IPO and CPO: `preference_loss`,
        `preference_accuracy`, `margin`, `confidence`. None where no row has the label.
        """
        self.load()
        return self._metrics(self.data_loader.prepare(eval_dataset))

    # -- comparison and saving

    def generate_with_comparison(self, prompt: str, max_length: int = 512, **kwargs: Any) -> dict[str, Any]:
        """The trained model's answer next to the reference's.

        Args:
            prompt: the user's text.
            max_length: most new tokens.
            kwargs: `temperature` (0: greedy), `seed`, and what transformers' `generate` takes.

        Returns:
            `prompt`, `trained_model_response`, `reference_model_response`, `seed`, `proof`; KTO also `preference_signal`
            and `confidence_score`, IPO and CPO `preference_score` and `improvement_detected`.
        """
        self.load()
        reference = self._reference_for_scoring()
        pair = ModelPair(
            self.model,
            None if isinstance(reference, BaseView) else reference,
            self.data_loader.renderer,
            self.config.beta,
        )
        return self._module.reply(pair.compare(prompt, max_new_tokens=max_length, **kwargs))

    def method_metadata(self) -> dict[str, Any]:
        return self._module.metadata(self.config, self.reference_name)


def create_preference_trainer(config: PreferenceConfig) -> PreferenceTrainer:
    """A trainer for the method that the config's type names."""
    return PreferenceTrainer(config)


def create_kto_trainer(config: KTOConfig) -> PreferenceTrainer:
    """A KTO trainer. Raises `TypeError` for another method's config."""
    return _create(config, KTOConfig)


def create_ipo_trainer(config: IPOConfig) -> PreferenceTrainer:
    """An IPO trainer. Raises `TypeError` for another method's config."""
    return _create(config, IPOConfig)


def create_cpo_trainer(config: CPOConfig) -> PreferenceTrainer:
    """A CPO trainer. Raises `TypeError` for another method's config."""
    return _create(config, CPOConfig)


def _create(config: Any, kind: type[Any]) -> PreferenceTrainer:
    if not isinstance(config, kind):
        raise TypeError(f"config must be a {kind.__name__}, not {type(config).__name__}")
    return PreferenceTrainer(config)
