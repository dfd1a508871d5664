"""Recipes: `try`, `careful` and `thorough` set the fields of a config so that a run changes the model without breaking it.

AdamW moves each weight by about the learning rate per step, so the sum of the learning rates, times LoRA's scaling, says how
far a run moves its model (`forecast`). A recipe aims at such a movement: `MOVEMENTS` has it for each size of model, together
with the highest learning rate. The number of steps follows from the rows, and the learning rate from both.

    config = KTOConfig(model_name=folder, dataset_path=file, **recipe("try", "kto", weights=weights_of(folder), rows=200))

A field that the caller names keeps its value, and the others are computed around it. `docs/recipes.md` has the sources and
what each recipe did in measured runs. Torch-free.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from trainer_core.config import SETTINGS_OF, TrainingSettings
from trainer_core.errors import SpecInvalid
from trainer_core.estimates import steps_an_epoch
from trainer_core.schedule import learning_rate_sum
from trainer_core.wording import Message, rounded, said, say

RecipeName = Literal["try", "careful", "thorough"]
RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)
VERSION = 2
"""Rises with every change of a table below. Jobs keep the version that expanded them, and its values."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe asks of a run, whatever the model.

    Attributes:
        steps: optimizer steps, at least.
        epochs: passes over the rows, at least; None: as many as the steps take, and no more.
        evaluations: how often to evaluate during the run.
        patience: evaluations without improvement before the run stops; None: it does not stop early.
        samples: prompts to answer at each evaluation.
    """

    steps: int
    epochs: int | None
    evaluations: int
    patience: int | None
    samples: int


@dataclass(frozen=True)
class Reach:
    """How far a model of some size may be moved: a target for each recipe, and the highest learning rate.

    With LoRA the target is the sum of the learning rates times the scaling, and the rate is for a scaling of 2.
    """

    careful: float
    tried: float
    thorough: float
    rate: float

    def target(self, name: RecipeName) -> float:
        return {"try": self.tried, "careful": self.careful, "thorough": self.thorough}[name]


@dataclass(frozen=True)
class SizeClass:
    """A range of models, with the reach of LoRA and of training all weights.

    Attributes:
        name: as records and sentences have it.
        most_weights: the largest model in it.
        rows_at_once: rows per forward pass, at most.
        sources: the published settings that the numbers come from; empty if they were measured (`docs/recipes.md`).
    """

    name: Literal["tiny", "small", "large"]
    most_weights: float
    rows_at_once: int
    sources: str
    lora: Reach
    full: Reach


TABLE: dict[RecipeName, Recipe] = {
    "try": Recipe(steps=60, epochs=None, evaluations=2, patience=None, samples=2),
    "careful": Recipe(steps=100, epochs=1, evaluations=4, patience=None, samples=4),
    "thorough": Recipe(steps=200, epochs=3, evaluations=10, patience=3, samples=4),
}
MOVEMENTS: tuple[SizeClass, ...] = (
    # Measured: docs/recipes.md.
    SizeClass("tiny", 5e7, 16, "", lora=Reach(0.03, 0.05, 0.1, rate=2e-3), full=Reach(1e-3, 2e-3, 4e-3, rate=2e-4)),
    # CPO on 124 million weights: LoRA 8e-5, all weights 8e-6, 1,000 steps. DPO on 500 million: 5e-6 and 5e-7.
    SizeClass(
        "small",
        1.5e9,
        4,
        "TRL",
        lora=Reach(0.015, 0.02, 0.06, rate=2e-4),
        full=Reach(2e-4, 3e-4, 8e-4, rate=1e-5),
    ),
    # 7 to 13 billion weights. LoRA: 5e-6 to 1e-4, with movements from 2e-3 to 0.13. All weights: 3e-7 to 5e-6.
    SizeClass(
        "large",
        math.inf,
        2,
        "alignment-handbook, LLaMA-Factory, ms-swift, ALMA-R, SimPO, HALOs",
        lora=Reach(0.0125, 0.015, 0.05, rate=1e-4),
        full=Reach(1e-4, 1.2e-4, 4e-4, rate=5e-6),
    ),
)

_SCALING = 2.0
# TRL recommends 8 to 32 rows per step for KTO, and smaller batches and more epochs where there are few rows.
_BATCHES = ((400, 8), (math.inf, 16))
_MOST_EPOCHS = 40
# How much longer a run may be than the recipe says, if its learning rate is low.
_MOST_TIMES_LONGER = 5
# With fewer rows, a tenth is too few to measure anything.
_LEAST_SPLIT_ROWS = 40
_SPLIT = 0.1
# Assumed where the number of rows is unknown. The run's length is then in steps, which hold for any file.
_ROWS_IN_LARGE_FILE = 10_000
# λ_D·n_D / (λ_U·n_U) should lie between 1 and 4/3 (arXiv:2402.01306, eq. 8). Up to a quarter off is left as it is.
_BALANCE = (0.75, 5 / 3)
_HIGHEST_WEIGHT = 1000.0
"""The most that KTO allows."""


@dataclass(frozen=True)
class Facts:
    """What a recipe needs to know. Numbers that are unknown are None.

    Attributes:
        weights: of the model.
        rows: training rows, as the method counts them: for methods on labels a pair is two.
        desirable: those of them that are labelled desirable.
        has_validation: whether there is validation data.
        adapter: where the adapter is that the run continues.
    """

    weights: int | None = None
    rows: int | None = None
    desirable: int | None = None
    has_validation: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class Field:
    """A field that a recipe set: its value, and why it is that."""

    name: str
    value: Any
    source: Message


@dataclass(frozen=True)
class Expansion:
    """What a recipe made of a config."""

    recipe: RecipeName
    size: SizeClass
    facts: Facts
    fields: tuple[Field, ...]

    def values(self) -> dict[str, Any]:
        return {field.name: field.value for field in self.fields}

    def as_dict(self) -> dict[str, Any]:
        """The record for JSON: the recipe and its version, what it went by, and each field with its value and source."""
        return {
            "name": self.recipe,
            "version": VERSION,
            "weights": self.facts.weights,
            "rows": self.facts.rows,
            "size": self.size.name,
            "is_measured": not self.size.sources,
            **said(_went_by(self)),
            "fields": [{"name": field.name, "value": field.value, **said(field.source)} for field in self.fields],
        }


def recipe(
    name: RecipeName,
    method: str,
    *,
    weights: int | None = None,
    rows: int | None = None,
    desirable: int | None = None,
    has_validation: bool = False,
    **named: Any,
) -> dict[str, Any]:
    """Keyword arguments for a method's config: those in `named`, and those that the recipe sets.

    Args:
        weights: of the model, see `model_size.weights_of`; None: those of a large model are assumed.
        rows: training rows; for KTO each pair is two. None: unknown; the run's length is then a number of steps.
        desirable: KTO: how many of the rows are desirable; None: half of them.
        has_validation: whether there is validation data. Otherwise a tenth of the rows is set aside.

    Raises:
        SpecInvalid: the named fields do not go with a recipe.
    """
    facts = Facts(weights, rows, desirable, has_validation, named.get("adapter_name"))
    return {**named, **expand(name, method, facts, named).values()}


def expand(name: RecipeName, method: str, facts: Facts, named: Mapping[str, Any]) -> Expansion:
    """Works out the fields that a recipe sets. `named` are the fields that the caller set, whatever their value.

    Raises:
        SpecInvalid: the named fields do not go with a recipe.
    """
    settings = SETTINGS_OF[method]
    known = {field: value for field, value in named.items() if field in settings.model_fields}
    builder = _Builder(name, settings, facts, known)
    builder.check()
    builder.rows_per_step()
    builder.evaluation()
    builder.steps()
    builder.rate()
    builder.balance()
    builder.memory()
    fields = tuple(field for field in builder.fields if field.name not in known)
    return Expansion(name, builder.size, facts, fields)


def size_of(weights: int | None) -> SizeClass:
    """The class of a model; that of large models if its size is unknown."""
    return next((each for each in MOVEMENTS if weights is not None and weights <= each.most_weights), MOVEMENTS[-1])


class _Builder:
    """The fields of one expansion, in the order in which they depend on each other."""

    def __init__(self, name: RecipeName, method: type[TrainingSettings], facts: Facts, named: dict[str, Any]) -> None:
        self.fields: list[Field] = []
        self.size = size_of(facts.weights)
        self._name: RecipeName = name
        self._recipe = TABLE[name]
        self._method = method
        self._facts = facts
        self._named = named
        self._rows = _ROWS_IN_LARGE_FILE if facts.rows is None else facts.rows
        self._adapter_scaling = _scaling_in(facts.adapter) if named.get("adapter_name") and facts.adapter else None
        self._reach = self.size.lora if self._value("use_lora") else self.size.full

    def _value(self, field: str) -> Any:
        return self._named.get(field, self._method.model_fields[field].default)

    def _set(self, field: str, value: Any, source: Message) -> None:
        self.fields.append(Field(field, value, source))

    def _settings(self, **more: Any) -> TrainingSettings:
        """The config as far as it is known, to compute with. Invalid named fields are reported when the spec is read."""
        values = {**self._named, **{field.name: field.value for field in self.fields}, **more}
        return self._method.model_construct(**values)

    def check(self) -> None:
        """Raises `SpecInvalid` for fields that leave a recipe nothing to go by."""
        if "learning_rate" in self._named:
            return
        if self._value("optim") == "adafactor":
            raise SpecInvalid.at("optim", say("recipe_needs_adamw", recipe=self._name))
        if self._facts.rows is None and not self._value("max_steps"):
            for field in ("num_train_epochs", "max_steps"):
                if field in self._named:
                    raise SpecInvalid.at(field, say("recipe_needs_steps", recipe=self._name))
        if (adapter := self._value("adapter_name")) and self._adapter_scaling is None:
            raise SpecInvalid.at("adapter_name", say("recipe_adapter_unknown", recipe=self._name, adapter=adapter))

    def rows_per_step(self) -> None:
        """Rows per step: few for few rows, so that there are steps enough; split into passes that fit into memory."""
        self._set_validation()
        batch = next(size for most, size in _BATCHES if self._rows < most)
        batch = max(2, min(batch, self._rows))
        passes = self._named.get("gradient_accumulation_steps")
        at_once = max(2, batch // passes) if passes else min(batch, self.size.rows_at_once)
        at_once = self._named.get("per_device_train_batch_size", at_once)
        passes = passes or max(1, round(batch / at_once))
        source = say("recipe_rows_per_step_unknown", batch=at_once * passes)
        if self._facts.rows is not None:
            source = say("recipe_rows_per_step", batch=at_once * passes, n=self._rows)
        self._set("per_device_train_batch_size", at_once, source)
        self._set("gradient_accumulation_steps", passes, source)
        batches = math.ceil(max(1, self._rows) / at_once)
        self._steps_an_epoch = steps_an_epoch(self._settings(), batches)

    def _set_validation(self) -> None:
        split = self._named.get("validation_split")
        if not self._facts.has_validation and "validation_split" not in self._named and self._rows >= _LEAST_SPLIT_ROWS:
            split = _SPLIT
            self._set("validation_split", split, say("recipe_split"))
        self._has_validation = self._facts.has_validation or bool(split)
        self._rows -= int(self._rows * (split or 0.0))

    def evaluation(self) -> None:
        """How often to evaluate, and when to stop."""
        if not self._has_validation:
            return
        share = round(1 / self._recipe.evaluations, 2)
        self._set("eval_steps", share, say("recipe_evaluations", n=self._recipe.evaluations))
        self._set("sample_generations", self._recipe.samples, say("recipe_samples", n=self._recipe.samples))
        if self._recipe.patience:
            self._set("early_stopping_patience", self._recipe.patience, say("recipe_patience", n=self._recipe.patience))

    def steps(self) -> None:
        """How long to train: until the model can have moved far enough at the highest rate."""
        settings = self._settings()
        if self._value("max_steps"):
            self._steps = int(self._value("max_steps"))
            return
        if "num_train_epochs" in self._named:
            self._steps = max(1, math.ceil(settings.num_train_epochs * self._steps_an_epoch))
            return
        target, rate = self._reach.target(self._name), self._highest_rate()
        steps = range(self._recipe.steps, _MOST_TIMES_LONGER * self._recipe.steps)
        least = steps[0] + bisect_left(steps, target, key=self._movement(rate))
        most = max(1, _MOST_EPOCHS * self._steps_an_epoch)
        epochs = min(_MOST_EPOCHS, max(self._recipe.epochs or 1, math.ceil(least / self._steps_an_epoch)))
        is_in_steps = self._recipe.epochs is None or self._facts.rows is None
        if is_in_steps and "max_steps" not in self._named:
            self._steps = min(least, most) if self._recipe.epochs is None else epochs * self._steps_an_epoch
            self._set("max_steps", self._steps, say("recipe_steps", n=self._steps))
            return
        self._steps = epochs * self._steps_an_epoch
        if self._facts.rows is not None:
            source = say("recipe_epochs", n=epochs, steps=self._steps, rows=self._rows)
            self._set("num_train_epochs", float(epochs), source)

    def _movement(self, rate: float) -> Callable[[int], float]:
        """The movement, by the number of steps."""
        settings = self._settings(learning_rate=rate, learning_rate_cap=None)
        scaling = self._scaling(settings)
        return lambda steps: learning_rate_sum(settings, steps) * scaling

    def _scaling(self, settings: TrainingSettings) -> float:
        """LoRA's scaling; a continued adapter has its own."""
        return self._adapter_scaling or settings.lora_scaling

    def _highest_rate(self) -> float:
        """The highest rate for the scaling of these settings."""
        settings = self._settings()
        named = self._named.get("learning_rate")
        scaled = _SCALING / self._scaling(settings) if settings.use_lora else 1.0
        return named or min(1.0, self._reach.rate * scaled)

    def rate(self) -> None:
        """The learning rate: the target movement, spread over the steps."""
        target, highest = self._reach.target(self._name), self._highest_rate()
        rate = min(highest, rounded(target / self._movement(1.0)(self._steps), 2))
        basis = _basis(self.size)
        if rate < highest or highest == self._named.get("learning_rate"):
            source = say("recipe_rate", n=self._steps, movement=target, basis=basis)
        else:
            source = say("recipe_rate_highest", rate=rounded(rate, 2), basis=basis)
        self._set("learning_rate", rounded(rate, 2), source)
        cap = self._named.get("learning_rate_cap")
        if cap is not None and cap < rate and "learning_rate" not in self._named:
            raise SpecInvalid.at(
                "learning_rate_cap", say("recipe_capped", recipe=self._name, rate=rounded(rate, 2), cap=cap)
            )
        self._set("learning_rate_cap", None, say("recipe_cap"))

    def balance(self) -> None:
        """KTO: the weight of the rarer label."""
        names = ("desirable_weight", "undesirable_weight")
        desirable, rows = self._facts.desirable, self._facts.rows
        if self._method.rows != "labels" or desirable is None or rows is None or not 0 < desirable < rows:
            return
        ratio = desirable / (rows - desirable)
        if _BALANCE[0] <= ratio <= _BALANCE[1] or any(name in self._named for name in names):
            return
        # 7/6 is in the middle of 1 and 4/3.
        weight = 7 / 6 / ratio if ratio < 1 else ratio * 6 / 7
        counts = {"desirable": desirable, "undesirable": rows - desirable}
        source = say("recipe_balance", **counts, paper=f"arXiv:{self._method.paper}")
        self._set(names[0] if ratio < 1 else names[1], rounded(min(weight, _HIGHEST_WEIGHT), 2), source)

    def memory(self) -> None:
        """Activations are recomputed only if they would not fit."""
        self._set("gradient_checkpointing", "auto", say("recipe_checkpointing"))


def _scaling_in(folder: str) -> float | None:
    """The scaling of the adapter in a directory; None if there is none, or if it differs between layers."""
    try:
        found = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        if found.get("rank_pattern") or found.get("alpha_pattern"):
            return None
        rank = float(found["r"])
        scaling = float(found["lora_alpha"]) / (math.sqrt(rank) if found.get("use_rslora") else rank)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, RecursionError):
        return None
    return scaling if math.isfinite(scaling) and scaling > 0 else None


def _basis(size: SizeClass) -> Message:
    """Where the numbers for a size come from."""
    return say(f"recipe_basis.{size.name}", sources=size.sources)


def _went_by(expansion: Expansion) -> Message:
    if expansion.facts.weights is None:
        return say("recipe_went_by_unknown", basis=_basis(expansion.size))
    return say("recipe_went_by", n=expansion.facts.weights, basis=_basis(expansion.size))
