"""`PreferenceTrainer`: every preference method behind one interface, and the factories."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainingArguments

from trainer_core import forward_check
from trainer_core.base_trainer import BaseTrainer
from trainer_core.callbacks import Completed
from trainer_core.comparison import ModelPair
from trainer_core.config import CONFIG_OF, METHODS, PreferenceConfig, joined
from trainer_core.effect import Effect
from trainer_core.effect_measurement import EffectMeasurement, unseen_rows
from trainer_core.errors import ReferenceMismatch
from trainer_core.fast_path import FastPath
from trainer_core.fingerprints import check_covered
from trainer_core.generation_options import DEFAULT_LENGTH, length_of
from trainer_core.kept_adapters import KeptAdapters
from trainer_core.lora_options import set_dropout
from trainer_core.methods import method_of
from trainer_core.models import DTYPES, Locate, load_reference, same_name, weights_dtype
from trainer_core.observer import Observer
from trainer_core.proof import Claim, Sources, base_fingerprint, fingerprint_of, reference_of_proof
from trainer_core.reference import REFERENCE_ADAPTER, TRAINED_ADAPTER, FrozenView, check_adapter_files, settings_of
from trainer_core.row_rules import Row, comparable
from trainer_core.run_identity import identity
from trainer_core.run_review import RunReview
from trainer_core.samples import answer, sample_metrics
from trainer_core.schedule import WARM_UP
from trainer_core.scoring import Scores, score
from trainer_core.training_arguments import adopted, arguments_of
from trainer_core.wording import rounded, say

# Two passes over the same weights differ only by rounding, in bf16 and fp16 by about 1e-2 of a summed log-probability.
_AGREEMENT = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}
_ROWS_CHECKED = 4


class PreferenceTrainer(BaseTrainer):
    """Base trainer for preference optimization methods (KTO, IPO, CPO and others).

    Args:
        config: a method's config, e.g. a `KTOConfig`; its type decides the method.
        locate: maps a model's name to what is loaded; the service looks in its models directory.
        observer: receives phases, metrics, samples, warnings and checkpoints.

    Attributes:
        ref_model: the reference, None until `setup_reference_model`, and for KTO with `use_ref_model=False`. With LoRA it is
            a frozen view of the policy's own weights, otherwise a model.

    Raises:
        TypeError: `config` is not a method's config.
        ValueError: the config names a method that does not exist.
    """

    def __init__(self, config: PreferenceConfig, *, locate: Locate = same_name, observer: Observer | None = None) -> None:
        # Not every caller runs a type checker.
        if not isinstance(config, tuple(CONFIG_OF.values())):
            names = joined([each.__name__ for each in CONFIG_OF.values()])
            raise TypeError(f"config must be a {names}, not {type(config).__name__}")
        super().__init__(config, locate=locate, observer=observer)
        self.preference_method = self._get_training_method()
        self.ref_model: Any = None
        self._scoring_reference: Any = None
        self._start: dict[str, Scores] = {}
        self._effect_measurement: EffectMeasurement | None = None
        self._run_review: RunReview | None = None
        self._evaluated: tuple[int, dict[str, Scores]] | None = None
        self._reference_proof: dict[str, Any] | None = None
        self._method = method_of(config)
        self.nullable_metrics = self._method.nullable
        self._fast_path = FastPath(config, self.observer, self._method.reference_columns, self._reference_identity)

    def _get_training_method(self) -> str:
        method = self.config.preference_method
        if method not in METHODS:
            raise ValueError(f"unknown preference method {method!r}; use {joined(METHODS)}")
        return method

    # -- reference

    @property
    def reference_name(self) -> str:
        """The name of the model with which the policy is compared."""
        return self.config.ref_model_name or self.config.model_name

    def setup_reference_model(self) -> None:
        """Sets `ref_model`: with LoRA a frozen view of the policy's own weights, otherwise a second, frozen model.

        KTO with `use_ref_model=False` has none.
        """
        self.load()
        if self.config.trains_without_reference_copy:
            self.ref_model = None
        elif self.ref_model is None:
            self.ref_model = self._make_reference()

    def _make_reference(self) -> Any:
        kind = self.config.reference_kind
        if kind != "model":
            return FrozenView(self.model, REFERENCE_ADAPTER if kind == "adapter" else None)
        dtype = weights_dtype(self.config.use_lora, self.precision)
        reference = load_reference(self.places.reference, dtype, self.config.reference_in_4bit)
        if self._has_trained:
            base_fingerprint(self._remembered, "reference", reference, self.places.reference)
        return reference

    def _reference_for_scoring(self) -> Any:
        """The reference, even if training holds none; loaded on first use."""
        if self.ref_model is not None:
            return self.ref_model
        if self._scoring_reference is None:
            self._scoring_reference = self._make_reference()
        return self._scoring_reference

    @property
    def _loss_needs_reference(self) -> bool:
        """If not, a second model is loaded only when an evaluation or a comparison needs it."""
        return self.config.loss_needs_reference or self.config.reference_kind != "model"

    def _known_reference(self) -> Any:
        """The reference if it takes no extra memory, otherwise None."""
        if self.config.reference_kind != "model":
            return self._reference_for_scoring()
        return self.ref_model or self._scoring_reference

    def check_reference(self) -> None:
        """Before the first step: the reference's weights match its files, and it answers like the policy if it should."""
        reference = self._known_reference()
        check_covered(self.model, TRAINED_ADAPTER if self.config.use_lora else None)
        if self.config.use_lora:
            self.base_fingerprint()
        elif reference is None and self._starts_elsewhere:
            base_fingerprint(self._remembered, "start", self.model, self.places.model)
        check_adapter_files(reference, self.places.adapter)
        self._reference_proof = self.reference_proof()
        is_without_its_adapter = bool(self.config.adapter_name) and self.config.reference_kind == "base"
        if reference is None or self._starts_elsewhere or is_without_its_adapter:
            return
        scores = self._scores(self.data_loader.train[:_ROWS_CHECKED], reference).values()
        difference = max(answers.ratios.abs().max().item() for answers in scores)
        tokens = max(answers.tokens.max().item() for answers in scores)
        # NaN compares as false.
        if not difference <= _AGREEMENT[self.precision] * max(1.0, tokens / 10):
            found = {"reference": self.reference_name, "difference": rounded(difference)}
            raise ReferenceMismatch(say("reference_unlike_model", **found))

    @property
    def _starts_elsewhere(self) -> bool:
        """Whether the reference's base has different weights from the policy's, or the same in another precision."""
        is_other_model = self.config.ref_model_name not in (None, self.config.model_name)
        return is_other_model or self.config.reference_in_4bit != (self.config.load_in_4bit and self.config.use_lora)

    def check_reference_kept(self) -> None:
        name = self.reference_name
        try:
            now = self.reference_proof()
        except ReferenceMismatch as error:
            raise ReferenceMismatch(say("reference_changed_because", reference=name, reason=error.message)) from error
        if now != self._reference_proof:
            raise ReferenceMismatch(say("reference_changed", reference=name))

    def reference_proof(self) -> dict[str, Any] | None:
        """The proof of the reference; without a copy, of the policy before training if that is the same model."""
        reference = self._known_reference()
        if reference is None and (self._has_trained or self._starts_elsewhere):
            return self._reference_proof
        if isinstance(reference, FrozenView):
            return reference_of_proof(self.model, reference, self.base_fingerprint())
        model = self.model if reference is None else reference
        base = base_fingerprint(self._remembered, "reference", model, self.places.reference)
        return reference_of_proof(self.model, model, base)

    def _reference_identity(self) -> dict[str, Any]:
        reference = self._known_reference()
        settings = settings_of(self.model if reference is None else reference)
        return {"weights": fingerprint_of(self.reference_proof()), **settings}

    def reference_metadata(self) -> dict[str, Any]:
        return {"reference": self.config.reference_kind, "reference_sha256": fingerprint_of(self.reference_proof())}

    # -- training

    def create_trainer(self, dataset: Dataset, training_args: TrainingArguments, callbacks: list[Any]) -> Any:
        """The method's TRL trainer.

        Args:
            dataset: training rows: planned (`data_loader.dataset`), mapped by `data_loader.tokenize_and_format` or
                `tokenize_and_format_kto`, or as in a file.
            training_args: from `get_training_arguments()`, or plain `TrainingArguments`. Of plain ones, values that differ
                from transformers' defaults count; everything else, and the method's own fields, come from the config.
            callbacks: transformers callbacks.

        Raises:
            SpecInvalid: `training_args` sets a field of the method to a different value from the config's.
        """
        self.load()
        training_args = adopted(training_args, self._arguments, self._method_fields)
        if self._loss_needs_reference:
            self.setup_reference_model()
        validation = self.data_loader.validation
        with KeptAdapters(self.model, self.config.reference_kind == "adapter"):
            options: dict[str, Any] = {}
            if self.config.loss_needs_reference and not isinstance(self.ref_model, FrozenView):
                options["ref_model"] = self.ref_model
            trainer = self._method.trainer_class(
                model=self.model,
                args=training_args,
                train_dataset=self._planned(dataset),
                eval_dataset=self.data_loader.dataset(validation) if validation else None,
                processing_class=self.tokenizer,
                callbacks=[*callbacks, Completed(self.note_completed)],
                **options,
            )
        set_dropout(self.model, self.config.lora_dropout)
        self._fast_path.take(trainer, self.model, self.ref_model)
        trainer.row_names = self.data_loader.names
        models = {"model": self.model, "reference": self.ref_model}
        rows, names, alive = self.data_loader.train, self._method.answers, self.observer.alive
        forward_check.check(trainer, models, rows, names, precision=self.precision, on_pass=alive)
        self._fast_path.ask_reference_once(trainer, len(self.data_loader.train), self.precision)
        trainer.observer = self.observer
        trainer.describe = self.describe_checkpoint
        trainer.identity = identity(self.config, training_args, self.data_loader.plan_sha256, WARM_UP)
        self._method.configure(trainer)
        if validation:
            trainer.evaluated = lambda: self._during_evaluation(trainer)
            if self._holds_no_copy:
                self._start = self._scores(validation, None)
        return trainer

    @property
    def tokens_computed(self) -> int:
        """Tokens that this process has sent through the layers; 0 on TRL's own path, which does not count them."""
        savings = getattr(self.trainer, "savings", None)
        return savings.computed - savings.computed_before if savings else 0

    def acceleration_metadata(self) -> dict[str, Any]:
        return self._fast_path.metadata()

    def _planned(self, dataset: Dataset) -> Dataset:
        loader = self.data_loader
        if "prompt_ids" not in dataset.column_names:
            return loader.dataset(self._method.plan(loader.encoded(dataset)))
        # Only our own columns: mapped rows still have the file's.
        is_planned = set(self._method.columns[:3]) <= set(dataset.column_names) <= set(self._method.columns)
        return dataset if is_planned else loader.planned(dataset)

    def _get_method_specific_args(self) -> dict[str, Any]:
        return self._method.method_arguments()

    @property
    def _method_fields(self) -> set[str]:
        """Training arguments that only the config may set."""
        return {*self._method.trl_arguments(), *self._method.planned_by}

    def get_training_arguments(self) -> TrainingArguments:
        return self._arguments()

    def _arguments(self, **changes: Any) -> TrainingArguments:
        self.load()
        return arguments_of(
            self.config,
            self._method,
            self._steps(),
            precision=self.precision,
            has_validation=bool(self.data_loader.validation),
            checkpointing=self._fast_path.checkpointing(self.model, self.data_loader.train, self.precision),
            **changes,
        )

    # -- evaluation

    @property
    def _holds_no_copy(self) -> bool:
        """Whether TRL computes the reference's log-probabilities before the first step, without keeping a copy."""
        return self.config.trains_without_reference_copy and not self.config.use_lora

    def _scores(self, rows: list[Row], reference: Any) -> dict[str, Scores]:
        prompts = [row["prompt_ids"] for row in rows]
        answers = {name: [row[f"{name}_ids"] for row in rows] for name in self._method.answers}
        batch_size = self.config.per_device_eval_batch_size
        return score(self.model, reference, prompts, answers, batch_size, on_batch=self.observer.alive)

    def _metrics(self, rows: list[Row]) -> dict[str, float | None]:
        return self._method.metrics(self._scores(rows, self._reference_for_scoring()), rows)

    def _validation_metrics(self, step: int) -> dict[str, float | None]:
        """Metrics of the validation rows, without a second copy of the weights if the config forbids one."""
        rows = self.data_loader.validation
        if self._holds_no_copy:
            now = self._scores(rows, None)
            scores = {name: replace(now[name], ref_logps=self._start[name].logps) for name in now}
        else:
            scores = self._scores(rows, self._reference_for_scoring())
        self._evaluated = step, scores
        return self._method.metrics(scores, rows)

    def _during_evaluation(self, trainer: Any) -> dict[str, float | None]:
        """The method's metrics of the validation rows and of the samples, which are reported to the observer."""
        metrics = self._validation_metrics(trainer.state.global_step)
        prompts = self._sample_prompts()
        if not prompts:
            return metrics
        samples = answer(self.model, self.data_loader.renderer, prompts, self.config.sample_max_length)
        self.observer.samples(trainer.state.global_step, [sample.as_dict() for sample in samples])
        return {**metrics, **sample_metrics(samples, self.data_loader.renderer.thoughts_tag)}

    def _sample_prompts(self) -> list[Any]:
        if self.config.sample_prompts:
            return list(self.config.sample_prompts)
        distinct = {comparable(row["prompt"]): row["prompt"] for row in self.data_loader.validation}
        return list(distinct.values())[: self.config.sample_generations]

    def _evaluation_rows(self, eval_dataset: Any) -> list[Row]:
        if eval_dataset is not None:
            return self.data_loader.prepare(eval_dataset)
        rows = self.data_loader.validation or self.data_loader.held_back
        if not rows:
            self.observer.warning("evaluated_on_training_rows", say("evaluated_on_training_rows"))
        return rows or self.data_loader.train

    def evaluate_model(self, eval_dataset: Dataset | Iterable[Row] | None = None) -> dict[str, float | None]:
        """Evaluates the model.

        Args:
            eval_dataset: rows as in a file; default: the validation data, or else rows set aside before training.

        Returns:
            `eval_loss` (TRL's), TRL's metrics, and those of `compute_preference_metrics` with the prefix `eval_`. None if no
            row has the label that a metric needs.
        """
        trainer = self.prepare()
        rows = self._evaluation_rows(eval_dataset)
        during_training = trainer.evaluated
        trainer.evaluated = lambda: self._metrics(rows)
        history = list(trainer.state.log_history)
        is_computed = getattr(trainer, "precompute_ref_logps", False)
        asked = trainer.live_reference(self._reference_for_scoring()) if is_computed else nullcontext()
        try:
            with asked:
                results = trainer.evaluate(eval_dataset=self.data_loader.dataset(rows))
        finally:
            trainer.evaluated = during_training
            # Early stopping and warnings depend on the run's history, which must not include these rows.
            trainer.state.log_history = history
        missing = {f"eval_{name.removeprefix('eval_')}": None for name in self.nullable_metrics}
        return {**missing, **{name: value for name, value in results.items() if isinstance(value, int | float | None)}}

    def compute_preference_metrics(self, eval_dataset: Dataset | Iterable[Row]) -> dict[str, float | None]:
        """The method's preference metrics over rows as in a file.

        KTO: `kto_loss`, `desirable_accuracy`, `undesirable_accuracy`, `overall_accuracy`. IPO and CPO: `preference_loss`,
        `confidence`. All: `preference_accuracy`, `margin_accuracy`, `margin`. None if undefined (`docs/metrics.md`).
        """
        self.load()
        return self._metrics(self.data_loader.prepare(eval_dataset))

    # -- effect

    @property
    def _keeps_start(self) -> bool:
        """Whether the model before the run stays available: with the adapter off, or as a reference in memory."""
        if self.config.use_lora:
            return not self.config.adapter_name or self.config.reference_kind == "adapter"
        is_reference_held = not self._holds_no_copy and (self._loss_needs_reference or bool(self.data_loader.validation))
        return is_reference_held and not self._starts_elsewhere

    def note_start(self) -> None:
        dtype = DTYPES[self.precision]
        self._effect_measurement = EffectMeasurement(
            self.config,
            self._method,
            self.data_loader,
            self.observer,
            is_half=weights_dtype(self.config.use_lora, self.precision) != torch.float32,
            autocast=None if self.config.use_lora or dtype == torch.float32 else dtype,
        )
        rows, rows_from = unseen_rows(self.data_loader)
        trained = self._steps()[0] * self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        self._run_review = RunReview(
            self.config, self._method, self.data_loader, self.observer, rows=rows, rows_from=rows_from, trained=trained
        )
        if not self._keeps_start:
            self._effect_measurement.note_start(self.model)
            self._run_review.note_start(self.model)

    def measure_effect(self) -> Effect:
        assert self._effect_measurement is not None, "note_start comes first"
        return self._effect_measurement.measure(self.model, self._model_before())

    def _model_before(self) -> Any:
        """The model before the run, as `reference.model_of` takes it; None if it was not kept."""
        if not self._keeps_start:
            return None
        if self.config.use_lora:
            return FrozenView(self.model, REFERENCE_ADAPTER if self.config.adapter_name else None)
        return self._reference_for_scoring()

    def review_run(self) -> dict[str, Any]:
        assert self._run_review is not None, "note_start comes first"
        assert self._effect_measurement is not None
        rows, scores = self._effect_measurement.rows, self._effect_measurement.scores
        if self.data_loader.validation:
            rows, scores = self.data_loader.validation, self._last_scores()
        return self._run_review.measure(self.model, self._model_before(), rows, scores)

    def _last_scores(self) -> dict[str, Scores]:
        """The validation rows' scores under the final weights: those of the last evaluation, where they still hold.

        They do not if the weights of a better step were loaded since, or if another process evaluated before it died.
        """
        step = self.trainer.state.global_step
        if self._evaluated is None or self._evaluated[0] != step or self._has_earlier_weights:
            self._validation_metrics(step)
        assert self._evaluated is not None
        return self._evaluated[1]

    # -- comparison and saving

    def generate_with_comparison(self, prompt: str, max_length: int = DEFAULT_LENGTH, **kwargs: Any) -> dict[str, Any]:
        """Answers a prompt with the trained model and with the reference.

        Args:
            prompt: the user's text.
            max_length: maximum number of new tokens. The default is lowered to what fits in the model's context after the
                prompt; a value of yours that does not fit is refused.
            kwargs: `temperature` (0: greedy), `seed`, and the options of transformers' `generate`. `max_new_tokens` is
                another name for `max_length`.

        Returns:
            `prompt`, `trained_model_response`, `reference_model_response`, `seed`, `proof`; KTO also `preference_signal`
            and `confidence_score`, IPO and CPO `preference_score` and `improvement_detected`.

        Raises:
            SpecInvalid: an option is invalid, such as a negative temperature.
            DataInvalid: the prompt is empty, or leaves too little room for `max_length` tokens.
            ReferenceMismatch: the base or the reference in memory differs from its files, or from training.
        """
        length = length_of(max_length, kwargs)
        self.load()
        reference = self._reference_for_scoring()
        sources = Sources(
            self.places.model if self.config.use_lora else None,
            None if isinstance(reference, FrozenView) else self.places.reference,
        )
        pair = ModelPair(
            self.model,
            reference,
            self.data_loader.renderer,
            self.config.beta,
            Claim(reference=fingerprint_of(self._reference_proof)),
            sources=sources,
            remembered=self._remembered,
            reward=self.config.reward,
        )
        return self._method.reply(pair.compare(prompt, max_new_tokens=length, **kwargs))

    def method_metadata(self) -> dict[str, Any]:
        return self._method.metadata(self.reference_name)


def create_preference_trainer(config: PreferenceConfig) -> PreferenceTrainer:
    """A trainer for the method that the config's type names."""
    return PreferenceTrainer(config)


def _factory(kind: type[PreferenceConfig]) -> Callable[[PreferenceConfig], PreferenceTrainer]:
    """`create_kto_trainer` and the like: a trainer for one method's config, or `TypeError` for another's."""

    def create(config: PreferenceConfig) -> PreferenceTrainer:
        if not isinstance(config, kind):
            raise TypeError(f"config must be a {kind.__name__}, not {type(config).__name__}")
        return PreferenceTrainer(config)

    create.__name__ = create.__qualname__ = f"create_{kind.method_name}_trainer"
    create.__doc__ = f"A {kind.title} trainer. Raises `TypeError` for another method's config."
    return create


FACTORIES = {f"create_{name}_trainer": _factory(kind) for name, kind in CONFIG_OF.items()}


def __getattr__(name: str) -> Callable[[PreferenceConfig], PreferenceTrainer]:
    if name not in FACTORIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return FACTORIES[name]
