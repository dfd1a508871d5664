"""The part of a training that no method changes: load, prepare data, train, resume, save.

Knows no database, queue, HTTP or job. Where a model name leads and who watches are given by the caller.
"""

import json
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from trainer_core import plan
from trainer_core.callbacks import ObserverCallback
from trainer_core.config import PreferenceConfig
from trainer_core.data_loader import PreferenceData
from trainer_core.errors import Stopped
from trainer_core.models import (
    Locate,
    adapter_tensors,
    base_tensors,
    fingerprint,
    load_policy,
    load_tokenizer,
    resolve_precision,
    same_name,
)
from trainer_core.observer import Observer
from trainer_core.tokens import Renderer

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class BaseTrainer(ABC):
    """Loads a model and data, trains, and saves. Subclasses say what trains and with which arguments.

    Attributes:
        model: the model in training, None until `load`.
        tokenizer, data_loader: likewise.
        trainer: the TRL trainer, None until `train` or the first evaluation.
    """

    def __init__(self, config: PreferenceConfig, *, locate: Locate = same_name, observer: Observer | None = None) -> None:
        self.config = config
        self.observer = observer or Observer()
        self.locate = locate
        self.model: Any = None
        self.tokenizer: Any = None
        self.data_loader: Any = None
        self.trainer: Any = None
        self.precision: Any = None
        self._loaded = False
        self._watcher = ObserverCallback(self.observer)

    @abstractmethod
    def create_trainer(self, dataset: Dataset, training_args: TrainingArguments, callbacks: list[Any]) -> Any:
        """The TRL trainer for tokenised, planned rows."""

    @abstractmethod
    def get_training_arguments(self) -> TrainingArguments:
        """The TRL config of this training."""

    @abstractmethod
    def setup_reference_model(self) -> None:
        """Makes `ref_model` ready, where the method has one."""

    @abstractmethod
    def method_metadata(self) -> dict[str, Any]:
        """The method's part of the metadata file."""

    def load(self) -> None:
        """Tokenizer, data, then the model: everything that can be known is said before a model loads. Idempotent."""
        if self._loaded:
            return
        self.observer.phase("preparing")
        self.precision = resolve_precision(self.config)
        if self.config.effective_learning_rate < self.config.learning_rate:
            self.observer.warning(
                "learning_rate_clamped",
                f"learning_rate {self.config.learning_rate:g} is above learning_rate_cap "
                f"{self.config.learning_rate_cap:g}; training uses {self.config.effective_learning_rate:g}. "
                "Set learning_rate_cap to null to lift the cap.",
            )
        path = self.locate(self.config.model_name)
        self.tokenizer = load_tokenizer(path)
        renderer = Renderer(self.tokenizer, self.config.apply_chat_template)
        self.data_loader = PreferenceData(self.config, renderer, self.observer)
        self.data_loader.load()
        self.observer.phase("loading")
        self.model = load_policy(self.config, path, self.precision)
        self._loaded = True

    def prepare(self) -> Any:
        """The TRL trainer, made on the first call."""
        self.load()
        if self.trainer is None:
            self.setup_reference_model()
            self.trainer = self.create_trainer(
                Dataset.from_list(self.data_loader.train), self.get_training_arguments(), [self._watcher]
            )
        return self.trainer

    def train(self, resume_from_checkpoint: str | Path | None = None) -> dict[str, float]:
        """Trains, evaluates at the end when there is validation data, and saves to `output_dir`.

        Args:
            resume_from_checkpoint: a checkpoint directory to go on from.

        Returns:
            What transformers reports of the run: `train_loss`, `train_runtime` (seconds) and more. Empty when the
            checkpoint was that of the last step.

        Raises:
            Stopped: the observer asked to stop; a checkpoint of the last step was saved.
            NonfiniteLoss, ReferenceMismatch, and the errors of loading.
        """
        trainer = self.prepare()
        if resume_from_checkpoint is None:
            self.check_reference()
        metrics = self._run(Path(resume_from_checkpoint) if resume_from_checkpoint else None)
        if self._watcher.stopped:
            raise Stopped(f"stopped at step {trainer.state.global_step} after saving a checkpoint")
        if self.data_loader.validation and not self._evaluated_now():
            trainer.evaluate()
        self.save_model()
        return metrics

    def _run(self, checkpoint: Path | None) -> dict[str, float]:
        if checkpoint is None:
            return dict(self.trainer.train().metrics)
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return dict(self.trainer.train(resume_from_checkpoint=str(checkpoint)).metrics)
        # All steps are done: what a kill interrupted was the end. transformers would train one step more.
        self.trainer._load_from_checkpoint(str(checkpoint))
        self.trainer.state = state
        self.observer.progress(state.global_step, state.max_steps)
        return {}

    @abstractmethod
    def check_reference(self) -> None:
        """Raises `ReferenceMismatch` where policy and reference must agree before the first step and do not."""

    def _evaluated_now(self) -> bool:
        state = self.trainer.state
        last = [entry["step"] for entry in state.log_history if "eval_loss" in entry]
        return bool(last) and last[-1] == state.global_step

    def save_model(self, output_dir: str | None = None) -> None:
        """Writes weights, tokenizer, configuration and `<method>_metadata.json`.

        Args:
            output_dir: where to; default the config's.
        """
        self.load()
        self.observer.phase("saving")
        folder = Path(output_dir or self.config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / "training_config.json").write_text(
            self.config.model_dump_json(indent=2, exclude={"output_dir", "dataset_path", "eval_dataset_path"}),
            encoding="utf-8",
        )
        target = folder / f"{self.config.preference_method}_metadata.json"
        target.write_text(json.dumps(self.metadata(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def metadata(self) -> dict[str, Any]:
        """The metadata file: the method's fields, then what is needed to load and to repeat the training."""
        return {
            **self.method_metadata(),
            "training_completed_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "model_name": self.config.model_name,
            "use_lora": self.config.use_lora,
            "precision": self.precision,
            "learning_rate": self.config.effective_learning_rate,
            "seed": self.config.seed,
            "uses_chat_template": self.data_loader.renderer.uses_template,
            "template_sha256": self.data_loader.renderer.fingerprint,
            "data_plan_sha256": plan.fingerprint(self.data_loader.train),
            "data": self.data_loader.report(),
            "base_weights_sha256": fingerprint(base_tensors(self.model)) if self.config.use_lora else None,
            "weights_sha256": fingerprint([*base_tensors(self.model), *adapter_tensors(self.model)]),
            "versions": {name: version(name) for name in LIBRARIES},
        }
