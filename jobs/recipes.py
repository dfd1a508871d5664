"""Expands the recipe of a job spec: the fields that it leaves out get values that fit its model, rows and method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.places import find_model
from jobs.settings import Settings
from jobs.spec import AnyJobSpec, changed_spec, read_spec
from trainer_core import recipes
from trainer_core.config import SETTINGS_OF
from trainer_core.mixing import rows_of_each
from trainer_core.model_size import weights_of
from trainer_core.recipes import Facts
from trainer_core.row_rules import PAIRS, Kind

# Fields from which a recipe works out the others. A clone that changes one of them is expanded anew.
_WORKED_OUT_FROM = frozenset(
    {
        *("recipe", "method", "model_name", "adapter_name", "dataset_id", "dataset_path", "datasets"),
        *("eval_dataset_id", "eval_dataset_path", "validation_split", "use_lora", "lora_r", "lora_alpha", "use_rslora"),
        *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "optim"),
        *("learning_rate", "learning_rate_cap", "lr_scheduler_type", "min_lr_rate", "warmup_ratio", "warmup_steps"),
        *("desirable_weight", "undesirable_weight"),
    }
)


@dataclass(frozen=True)
class DataFacts:
    """What is known of a file of rows when a job is submitted. Numbers are None for files too large to count then."""

    name: str
    kind: Kind | None
    train_rows: int | None = None
    validation_rows: int | None = None
    desirable_rows: int | None = None


def expanded(
    settings: Settings, spec: AnyJobSpec, sent: dict[str, Any], data: Sequence[DataFacts], *, is_evaluated: bool
) -> tuple[AnyJobSpec, dict[str, Any] | None]:
    """The spec with the fields that its recipe sets, and the record of the recipe; the spec itself if it names none.

    Args:
        sent: the fields that the client sent, which keep their values.
        data: the training data, one or several.
        is_evaluated: whether the spec names validation data.

    Raises:
        SpecInvalid: the fields that were sent do not go with the recipe.
    """
    if spec.recipe is None:
        return spec, None
    found = recipes.expand(spec.recipe, spec.method, _facts(settings, spec, data, is_evaluated), sent)
    return read_spec({**sent, **found.values()}), found.as_dict()


def _facts(settings: Settings, spec: AnyJobSpec, data: Sequence[DataFacts], is_evaluated: bool) -> Facts:
    """What the recipe goes by. The counts are those of the files; a run may drop some of their rows."""
    weights = weights_of(find_model(settings, spec.model_name))
    has_validation = is_evaluated or any(each.validation_rows for each in data)
    adapter = find_model(settings, spec.adapter_name, "adapter_name") if spec.adapter_name else None
    counts = [each.train_rows for each in data if each.train_rows is not None]
    if len(counts) < len(data):
        return Facts(weights, has_validation=has_validation, adapter=adapter)
    desirable = [each.desirable_rows or 0 for each in data]
    if spec.datasets:
        counts = rows_of_each(spec.datasets, counts, [each.name for each in data])
        # The rows that a mix takes are drawn at random.
        shares = zip(desirable, counts, data, strict=True)
        desirable = [round(wanted * count / max(1, each.train_rows or 0)) for wanted, count, each in shares]
    if SETTINGS_OF[spec.method].rows != "labels":
        return Facts(weights, sum(counts), None, has_validation, adapter)
    of_kind = list(zip(counts, desirable, data, strict=True))
    rows = sum(2 * count if each.kind == PAIRS else count for count, _, each in of_kind)
    wanted = sum(count if each.kind == PAIRS else labelled for count, labelled, each in of_kind)
    return Facts(weights, rows, wanted, has_validation, adapter)


def changed(
    sent: dict[str, Any], recipe: dict[str, Any] | None, overrides: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The spec of a clone, as it would be sent, and the record of a recipe that is kept.

    A clone keeps the values of its job's recipe, unless it changes something from which they were worked out: then its own
    recipe sets them anew, with the tables of this version. Fields that the job's client sent keep their values in any case.
    """
    new = changed_spec(sent, overrides)
    if recipe is None or overrides.keys() & _WORKED_OUT_FROM:
        return new, None
    kept = [field for field in recipe["fields"] if field["name"] not in new]
    return new, {**recipe, "fields": kept}
