"""The part of a run that no method changes: load, prepare data, train, resume, save.

Knows no database, queue, HTTP or job. The caller says where a model name leads and who observes the run.
"""

import json
import math
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from trainer_core import estimates, forecast, lora_options, model_card, preflight, run_identity
from trainer_core.callbacks import EarlyStopping, ObserverCallback, Resumed
from trainer_core.checkpoints import carry, clear, has_no_room, newest_in, verified_step
from trainer_core.config import LibraryPaths, PreferenceConfig
from trainer_core.data_loader import PreferenceData
from trainer_core.effect import Effect
from trainer_core.errors import DiskFull, SpecInvalid, Stopped, TafdilError
from trainer_core.estimates import Load, Size, planned_steps, steps_an_epoch
from trainer_core.fingerprints import Remembered, side_fingerprint
from trainer_core.loading import reason_of
from trainer_core.models import Locate, answering_dtype, dtype_name, load_policy, resolve_precision, same_name
from trainer_core.observer import Observer
from trainer_core.proof import base_fingerprint, function_of, side_of_proof
from trainer_core.reference import TRAINED_ADAPTER
from trainer_core.renderers import load_renderer, renderer_metadata
from trainer_core.wording import say

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


class BaseTrainer(ABC):
    """Loads a model and data, trains, and saves. Subclasses choose the TRL trainer and its arguments.

    Attributes:
        model: the model being trained, None until `load`.
        tokenizer, data_loader: likewise.
        trainer: the TRL trainer, None until `train` or the first evaluation.
        effect: what the run did to the model, None until training ends.
        review: what the run learned, None until training ends.
    """

    nullable_metrics: tuple[str, ...] = ()

    def __init__(self, config: PreferenceConfig, *, locate: Locate = same_name, observer: Observer | None = None) -> None:
        self.config = config
        self.observer = observer or Observer()
        self.locate = locate
        self.model: Any = None
        self.tokenizer: Any = None
        self.data_loader: Any = None
        self.trainer: Any = None
        self.precision: Any = None
        self.places: Any = None
        self.effect: Effect | None = None
        self.review: dict[str, Any] | None = None
        self._remembered = Remembered()
        self._is_loaded = self._has_trained = False
        self._completed_at: str | None = None
        self._watcher: Any = None
        self._early_stopping: EarlyStopping | None = None
        self._stopped_early: dict[str, Any] | None = None
        self._evaluates_on_start = False

    @abstractmethod
    def create_trainer(self, dataset: Dataset, training_args: TrainingArguments, callbacks: list[Any]) -> Any:
        """The TRL trainer for tokenised, planned rows."""

    @abstractmethod
    def get_training_arguments(self) -> TrainingArguments:
        """The TRL config of this run."""

    @abstractmethod
    def setup_reference_model(self) -> None:
        """Sets up `ref_model` if the method needs one."""

    @abstractmethod
    def check_reference(self) -> None:
        """Raises `ReferenceMismatch` if the reference is not the one that the config names."""

    @abstractmethod
    def check_reference_kept(self) -> None:
        """Raises `ReferenceMismatch` if training changed the reference."""

    @abstractmethod
    def note_start(self) -> None:
        """Called before the first step: keeps what `measure_effect` compares with and cannot get later."""

    @abstractmethod
    def measure_effect(self) -> Effect:
        """Measures what the run did to the model."""

    @abstractmethod
    def review_run(self) -> dict[str, Any]:
        """Measures what the run learned; see `docs/metrics.md`."""

    @abstractmethod
    def method_metadata(self) -> dict[str, Any]:
        """The method's part of the metadata file."""

    @abstractmethod
    def acceleration_metadata(self) -> dict[str, Any]:
        """The metadata about the path that computed the losses."""

    @abstractmethod
    def reference_metadata(self) -> dict[str, Any]:
        """The metadata about the reference, besides its name."""

    @abstractmethod
    def reference_proof(self) -> dict[str, Any] | None:
        """The proof's part about the reference (`proof.reference_of_proof`); None if it is not known."""

    def base_fingerprint(self) -> str:
        """The model's fingerprint without its adapter. Raises `ReferenceMismatch` if it differs from the model's files."""
        return base_fingerprint(self._remembered, "trained", self.model, self.places.model if self.config.use_lora else None)

    def load(self) -> None:
        """Runs checks, loads tokenizer and data, and the model last, so that errors appear early. Idempotent."""
        if self._is_loaded:
            return
        self.observer.phase("preparing")
        self.precision = resolve_precision(self.config)
        preflight.warn_of_clamp(self.config, self.observer)
        self.places = preflight.check(self.config, self.locate)
        lora_options.warn(self.config, self.places.adapter, self.observer)
        renderer = load_renderer(self.config, self.places.model)
        self.tokenizer = renderer.tokenizer
        preflight.check_tokenizer(self.tokenizer, self.places.model)
        self.data_loader = PreferenceData(self.config, renderer, self.observer)
        self.data_loader.load()
        preflight.check_validation(self.config, self.data_loader.validation, self.observer)
        forecast.warn(self.config, *self._steps(), self.observer, is_half=self.precision != "fp32")
        self.observer.data(self.data_loader.report())
        self.observer.phase("loading")
        self.model = load_policy(self.config, self.places.model, self.places.adapter, self.precision)
        self._is_loaded = True

    def prepare(self) -> Any:
        """The TRL trainer, built on the first call."""
        self.load()
        if self.trainer is None:
            self._watcher = ObserverCallback(self.observer, self.nullable_metrics)
            callbacks: list[Any] = [self._watcher]
            if self.config.early_stopping_patience:
                self._early_stopping = EarlyStopping(self.config, self._protect)
                callbacks.append(self._early_stopping)
            dataset = self.data_loader.dataset(self.data_loader.train)
            arguments = self.get_training_arguments()
            self._evaluates_on_start = arguments.eval_on_start
            self.trainer = self.create_trainer(dataset, arguments, callbacks)
        return self.trainer

    def _protect(self, step: int | None) -> None:
        self.trainer.protected_step = step

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> dict[str, float]:
        """Trains, evaluates at the end if there is validation data, and saves to `output_dir`.

        Args:
            resume_from_checkpoint: a checkpoint directory to resume from; True: the newest whole one in `output_dir`;
                None or False: start from the first step.

        Returns:
            What transformers reports for this call's steps: `train_loss` (mean), `train_runtime` (seconds) and more. Empty
            if the checkpoint was the last step's.

        Raises:
            Stopped: the observer asked to stop; a checkpoint of the last step was saved.
            SpecInvalid: the checkpoint is damaged or from another run, or there is none.
            NonfiniteLoss, ReferenceMismatch, DiskFull, and the errors of loading.
        """
        checkpoint = newest_in(Path(self.config.output_dir)) if resume_from_checkpoint is True else resume_from_checkpoint
        trainer = self.prepare()
        self._completed_at = None
        if not self._has_trained:
            # A checkpoint's weights load later, so this is the model of the first step, resumed or not.
            self.check_reference()
            self.note_start()
        self._has_trained = True
        metrics = self._run(Path(checkpoint) if checkpoint else None)
        if self._watcher.stopped:
            self._completed_at = None
            raise Stopped(say("stopped_at", step=trainer.state.global_step))
        self.check_reference_kept()
        if self.data_loader.validation and not self._evaluated_now():
            trainer.evaluate()
        self._take_best()
        self._measure()
        self.note_completed()
        self.save_model()
        return metrics

    def note_completed(self) -> None:
        """Called at the end of a run: records the time for the metadata."""
        self._completed_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _measure(self) -> None:
        self.observer.phase("evaluating")
        try:
            self.effect = self.measure_effect()
        except TafdilError:
            raise
        except Exception as error:
            # A failed measurement must not cost the trained model.
            self.observer.warning("effect_not_measured", say("effect_not_measured", problem=reason_of(error)))
            return
        self.observer.effect(self.effect.verdict, self.effect.as_dict())
        try:
            self.review = self.review_run()
        except TafdilError:
            raise
        except Exception as error:
            self.observer.warning("run_not_reviewed", say("run_not_reviewed", problem=reason_of(error)))
            return
        self.observer.review(self.review)

    @property
    def _has_earlier_weights(self) -> bool:
        """Whether early stopping loaded the weights of an earlier step."""
        stopped = self._stopped_early
        return stopped is not None and stopped["best_step"] != stopped["last_step"]

    def _run(self, checkpoint: Path | None) -> dict[str, float]:
        trainer = self.trainer
        trainer.args.eval_on_start = self._evaluates_on_start and checkpoint is None
        if checkpoint is None:
            self._clear_earlier()
            return dict(trainer.train().metrics)
        state = self._verified_state(checkpoint)
        best, waited = self._early_stopping.best(state.log_history) if self._early_stopping else (None, 0)
        if best is not None and verified_step(checkpoint.parent / f"checkpoint-{best}") == best:
            carry(checkpoint.parent / f"checkpoint-{best}", Path(self.config.output_dir))
        is_stopped = self.config.early_stopping_patience is not None and waited >= self.config.early_stopping_patience
        if state.global_step < self._planned_steps(state) and not is_stopped:
            trainer.add_callback(Resumed(lambda: trainer.read_more(checkpoint)))
            return dict(trainer.train(resume_from_checkpoint=str(checkpoint)).metrics)
        # All steps are done: the process was killed after the last one. transformers would train another step.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state
        trainer.read_counts(checkpoint)
        self.observer.progress(state.global_step, state.max_steps)
        return {}

    def _clear_earlier(self) -> None:
        removed = clear(Path(self.config.output_dir))
        if removed:
            names = [*removed[:5], *(["…"] if len(removed) > 5 else [])]
            self.observer.warning("output_replaced", say("output_replaced", names=names))

    def _verified_state(self, checkpoint: Path) -> TrainerState:
        """A checkpoint's state. Raises `SpecInvalid` if it is incomplete or from another run."""

        def refuse(code: str, **values: Any) -> SpecInvalid:
            return SpecInvalid.at("resume_from_checkpoint", say(code, checkpoint=checkpoint.name, **values))

        if verified_step(checkpoint) is None:
            raise refuse("checkpoint_not_whole")
        identity = self.trainer.read_identity(checkpoint)
        if not isinstance(identity, dict):
            raise refuse("checkpoint_anonymous")
        is_earlier = "warm-up" not in identity
        identity = run_identity.complete(identity, self.config)
        if is_earlier:
            # The run keeps its original schedule, and its new checkpoints record that.
            self.trainer.identity.pop("warm-up", None)
            self.trainer.warms_up_from_zero = True
        for name, value in self.trainer.identity.items():
            if identity.get(name) == value or (is_earlier and name not in identity):
                continue
            if is_earlier and name == "data plan":
                raise refuse("checkpoint_of_older")
            raise refuse("checkpoint_of_other", what=run_identity.words(name), then=str(identity.get(name)), now=str(value))
        return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _steps(self) -> tuple[int, int]:
        """Optimizer steps of the run, according to the config, and of one epoch."""
        batches = math.ceil(len(self.data_loader.train) / self.config.per_device_train_batch_size)
        return planned_steps(self.config, batches), steps_an_epoch(self.config, batches)

    def _planned_steps(self, state: TrainerState) -> int:
        """Optimizer steps that the config asks for, which may have changed since the checkpoint."""
        planned, _ = self._steps()
        if planned != state.max_steps:
            self.observer.warning("length_changed", say("length_changed", before=state.max_steps, now=planned))
        return planned

    def _evaluated_now(self) -> bool:
        state = self.trainer.state
        last = [entry["step"] for entry in state.log_history if "eval_loss" in entry]
        return bool(last) and last[-1] == state.global_step

    def _take_best(self) -> None:
        """With early stopping: loads the weights of the best evaluation."""
        if self._early_stopping is None:
            return
        state = self.trainer.state
        best, _ = self._early_stopping.best(state.log_history)
        name = self.config.early_stopping_metric
        self._stopped_early = {"metric": name, "best_step": best, "last_step": state.global_step}
        if best is None or best == state.global_step:
            return
        checkpoint = Path(self.config.output_dir) / f"checkpoint-{best}"
        if verified_step(checkpoint) == best:
            self.trainer._load_from_checkpoint(str(checkpoint))
            steps = {"best": best, "last": state.global_step, "planned": state.max_steps}
            self.observer.warning("best_model_taken", say("best_model_taken", metric=name, **steps))
        else:
            self.observer.warning("best_model_lost", say("best_model_lost", metric=name, best=best))

    def save_model(self, output_dir: str | None = None) -> None:
        """Writes weights, tokenizer, configuration, `<method>_metadata.json` and a model card, `README.md`.

        Before the end of training the metadata has no `training_completed_at`.

        Args:
            output_dir: target directory; default: the config's.

        Raises:
            DiskFull: not everything could be written.
        """
        self.load()
        self.observer.phase("saving")
        folder = Path(output_dir or self.config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._write(folder)
        except Exception as error:
            if has_no_room(error, folder):
                raise DiskFull(say("disk_full_model")) from error
            raise

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / "training_config.json").write_text(
            self.config.model_dump_json(indent=2, exclude=set(LibraryPaths.model_fields)),
            encoding="utf-8",
        )
        target = folder / f"{self.config.preference_method}_metadata.json"
        metadata = self.metadata()
        target.write_text(json.dumps(metadata, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        model_card.write(folder, metadata, self.places.model)

    def _speed(self) -> dict[str, Any] | None:
        """How fast this process's steps were; None without steps, or for a model that the estimates do not cover."""
        if self._watcher is None or not self._watcher.steps:
            return None
        try:
            size = Size.of(self.model.config.to_dict())
        except KeyError:
            return None
        load = Load.of(self.data_loader.train, self.data_loader.validation, self.config)
        return estimates.speed(
            self.config,
            size,
            load,
            checkpointing=self.trainer.args.gradient_checkpointing,
            steps=self._watcher.steps,
            seconds=self._watcher.seconds,
            on_gpu=not self.trainer.args.use_cpu,
        )

    def describe_checkpoint(self, folder: Path, state: TrainerState) -> None:
        """Writes the model card of a checkpoint before it is published."""
        model_card.write(folder, self._known_metadata(state), self.places.model, step=state.global_step)

    def _known_metadata(self, state: TrainerState | None) -> dict[str, Any]:
        """The part of the metadata that is available at no cost. `state`: the trainer's, if there is one."""
        config = self.config
        return {
            **self.method_metadata(),
            "model_name": config.model_name,
            "adapter_name": config.adapter_name,
            "use_lora": config.use_lora,
            "precision": self.precision,
            "dtype": dtype_name(answering_dtype(self.places.model) if config.use_lora else self.model.dtype),
            "load_in_4bit": config.load_in_4bit and config.use_lora,
            "ref_load_in_4bit": config.reference_in_4bit,
            "learning_rate": config.effective_learning_rate,
            "seed": config.seed,
            "evaluation": model_card.evaluation(state.log_history) if state else None,
            "data": self.data_loader.report(),
            **renderer_metadata(self.data_loader.renderer),
        }

    def metadata(self) -> dict[str, Any]:
        """The metadata file: the method's fields, then what is needed to load the model and to repeat the run."""
        config = self.config
        renderer = self.data_loader.renderer
        trained = side_of_proof(self.model, TRAINED_ADAPTER if config.use_lora else None, self.base_fingerprint())
        return {
            **self._known_metadata(self.trainer.state if self.trainer else None),
            **({"training_completed_at": self._completed_at} if self._completed_at else {}),
            "early_stopping": self._stopped_early,
            "acceleration": self.acceleration_metadata(),
            "data_plan_sha256": self.data_loader.plan_sha256,
            "base_weights_sha256": trained["base_sha256"] if config.use_lora else None,
            "weights_sha256": side_fingerprint(trained["base_sha256"], trained["adapter_sha256"]),
            **self.reference_metadata(),
            "proof": {**function_of(trained, renderer, config.beta), "reference": self.reference_proof()},
            "effect": self.effect.verdict if self.effect else None,
            "effect_evidence": self.effect.as_dict() if self.effect else None,
            "review": self.review,
            "speed": self._speed(),
            "versions": dict(_versions()),
        }
