"""The job spec that a client sends: flat, with one class per method, chosen by `method`. Unknown fields are refused.

The training fields are those of the library (`trainer_core.config`); this module adds what only a job has, such as its data.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from jobs.settings import GPU_CLASS, GpuClass
from trainer_core import validation
from trainer_core.config import CONFIG_OF, METHODS, SETTINGS, Method, PreferenceConfig, TrainingSettings
from trainer_core.errors import SpecInvalid
from trainer_core.mix_options import MOST_DATASETS, Take, check_mix
from trainer_core.recipes import RecipeName
from trainer_core.validation import FieldError
from trainer_core.wording import Message, say

ID = r"^[0-9a-f]{32}$"
# One or two names of letters, digits, dots, dashes and underscores, none of which starts with a dot: never a path.
MODEL_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$"
TENANT = r"^[a-z0-9][a-z0-9._-]{0,63}$"
REPOSITORY = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$"
IDEMPOTENCY_KEY = r"^[\x21-\x7e]+$"
EVENT_TYPE = r"^[a-z_]{1,32}$"
COLUMN_MAP = r"^[^:]{1,200}:[\s\S]{1,200}$"
# Valid values in words: the codes of their sentences.
PATTERNS = {
    ID: "pattern.id",
    MODEL_PATTERN: "pattern.model_name",
    TENANT: "pattern.tenant",
    REPOSITORY: "pattern.repository",
    GPU_CLASS: "pattern.gpu_class",
    IDEMPOTENCY_KEY: "pattern.idempotency_key",
    EVENT_TYPE: "pattern.event_type",
    COLUMN_MAP: "pattern.map",
}
_SOURCES = ("dataset_id", "dataset_path", "datasets")


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError(say("text_nul"))
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(say("text_half"))
    return text


def _flat(value: Any) -> list[Any]:
    """A field's value as a list of the values in it."""
    if isinstance(value, dict):
        held = cast("dict[str, Any]", value)
        return [*held, *held.values()]
    return cast("list[Any]", value) if isinstance(value, list) else [value]


PlainText = Annotated[str, AfterValidator(_storable)]


MODEL_NAME: Any = Field(
    min_length=1,
    max_length=200,
    pattern=MODEL_PATTERN,
    description="A model in the models directory, e.g. `Qwen/Qwen2.5-0.5B-Instruct` or `tafdil/tiny-arabic-qwen-2`.",
)


class Sent(BaseModel):
    """A body that a client sends. Only the types in its schema are accepted, except that 10.0 is also an integer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in cast("dict[str, Any]", sent).items()}


class MixedDataset(Sent, Take):
    """A dataset in a mix, and how much of it to use."""

    name: PlainText | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="The name in messages, reports and the model card. Defaults to the dataset's own name or its path.",
    )
    dataset_id: str | None = Field(None, pattern=ID, description="An uploaded dataset.")
    dataset_path: str | None = Field(
        None, min_length=1, max_length=500, description="A file, relative to the data directory."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset_id is None) == (self.dataset_path is None):
            raise ValueError(say("set_one_of", fields=["dataset_id", "dataset_path"]))
        return self


class _JobFields(Sent):
    name: PlainText | None = Field(None, min_length=1, max_length=200, description="A name for the job.")
    recipe: RecipeName | None = Field(
        None,
        description="Sets the fields that the spec leaves out: `try`, a short run that shows an effect; `careful`, the "
        "smallest change that shows; `thorough`, several passes, stopped when they no longer help. `null`: the defaults.",
    )
    model_name: str = MODEL_NAME
    ref_model_name: str | None = Field(
        None,
        max_length=200,
        pattern=MODEL_PATTERN,
        description="The reference model; `null` uses the model itself, as it was before training.",
    )
    adapter_name: str | None = Field(
        None,
        max_length=200,
        pattern=MODEL_PATTERN,
        description="A LoRA adapter in the models directory to continue training. Its own rank, alpha and target "
        "modules apply.",
    )
    priority: int = Field(0, ge=-100, le=100, description="Jobs with a higher priority run first; among equals, the oldest.")
    gpu_class: GpuClass | None = Field(
        None,
        description="Only workers of this class (`TAFDIL_GPU_CLASS`) run the job, e.g. `a100`; `null` allows any worker.",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Hours that the job may run, over all its attempts; then it is paused with a checkpoint. `null` sets no "
        "limit besides the service's own.",
    )
    dataset_id: str | None = Field(None, pattern=ID, description="Training data: an uploaded dataset.")
    dataset_path: str | None = Field(
        None, min_length=1, max_length=500, description="Training data: a file, relative to the data directory."
    )
    datasets: list[MixedDataset] | None = Field(
        None,
        validate_default=True,
        min_length=1,
        max_length=MOST_DATASETS,
        description="Training data: several datasets, each with optional `rows` or `weight`. Their validation parts are "
        "combined.",
    )
    eval_dataset_id: str | None = Field(None, pattern=ID, description="Validation data: an uploaded dataset.")
    eval_dataset_path: str | None = Field(
        None, min_length=1, max_length=500, description="Validation data: a file, relative to the data directory."
    )

    @field_validator("datasets")
    @classmethod
    def _some_data(cls, datasets: list[MixedDataset] | None, info: ValidationInfo) -> list[MixedDataset] | None:
        # Separate from the cross-field checks below, which pydantic skips if a field is invalid: both are reported together.
        others = [info.data.get(name, "invalid") for name in _SOURCES if name != "datasets"]
        if datasets is None and not any(others):
            raise PydanticCustomError("data_missing", "no training data")
        return datasets

    @model_validator(mode="after")
    def _all_storable(self) -> Self:
        for name, value in self:
            if name.endswith("_path"):
                continue  # checked when it is resolved in the data directory
            for text in _flat(value):
                try:
                    _storable(text if isinstance(text, str) else "")
                except ValueError as error:
                    raise FieldError(name, error.args[0]) from error
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) > 1:
            raise FieldError(given[1], say("set_one_of", fields=list(_SOURCES)))
        check_mix(self.datasets or [], [each.dataset_id or str(each.dataset_path) for each in self.datasets or []])
        if self.eval_dataset_id is not None and self.eval_dataset_path is not None:
            fields = ["eval_dataset_id", "eval_dataset_path"]
            raise FieldError("eval_dataset_path", say("set_one_at_most", fields=fields))
        validation = getattr(self, "validation_split", None)
        if validation is not None and (self.eval_dataset_id or self.eval_dataset_path):
            raise FieldError("validation_split", say("eval_and_split"))
        return self


class AnyJobSpec(_JobFields, TrainingSettings):
    """The fields that every method's spec has."""

    method: Method


def example(settings: type[TrainingSettings]) -> dict[str, Any]:
    """A job on the sample data."""
    return {
        "method": settings.method_name,
        "model_name": "tafdil/tiny-arabic-qwen-2",
        "dataset_path": f"samples/{'kto' if settings.rows == 'labels' else 'pairs'}_train.jsonl",
        "eval_dataset_path": "samples/pairs_held_out.jsonl",
        **settings.sample_run(),
    }


def _spec_class(settings: type[TrainingSettings]) -> type[AnyJobSpec]:
    name = settings.method_name
    is_labels = settings.rows == "labels"
    rows = "prompt, completion and label; pairs are taken apart" if is_labels else "prompt, chosen and rejected"
    fields: Any = {"method": (Literal[name], Field(description=f"The training method, `{name}`."))}

    class Spec(_JobFields, settings):
        model_config = ConfigDict(title=f"{settings.title}JobSpec", json_schema_extra={"examples": [example(settings)]})

    return cast(
        "type[AnyJobSpec]",
        create_model(
            f"{settings.title}JobSpec",
            __base__=Spec,
            __module__=__name__,
            __doc__=f"Train with {settings.title}: rows of {rows}.",
            **fields,
        ),
    )


SPECS = {each.method_name: _spec_class(each) for each in SETTINGS}
if TYPE_CHECKING:
    JobSpec = AnyJobSpec
else:
    JobSpec = Annotated[Union[tuple(SPECS.values())], Field(discriminator="method")]  # noqa: UP007
JOB_SPEC: TypeAdapter[AnyJobSpec] = TypeAdapter(JobSpec)
_PLACES = {"body", "query", "path", "header"}
_ALTERNATIVES = (
    _SOURCES,
    ("eval_dataset_id", "eval_dataset_path", "validation_split"),
    ("warmup_ratio", "warmup_steps"),
)


def changed_spec(sent: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A spec as it was sent, with changes.

    A changed data source or warm-up replaces the original one. A new method drops the fields that it lacks.
    """
    replaced = {name for names in _ALTERNATIVES if overrides.keys() & set(names) for name in names}
    if changed := SPECS.get(str(overrides.get("method"))):
        replaced |= sent.keys() - changed.model_fields.keys()
    return {**{name: value for name, value in sent.items() if name not in replaced}, **overrides}


def dataset_ids(resolved: dict[str, Any]) -> set[str]:
    """The uploaded datasets that a resolved spec names, for training or for validation."""
    named = [resolved.get("dataset_id"), resolved.get("eval_dataset_id")]
    # Jobs stored before the field existed lack it.
    return {each for each in [*named, *(one["dataset_id"] for one in resolved.get("datasets") or [])] if each}


def read_spec(sent: dict[str, Any]) -> AnyJobSpec:
    """Reads a spec from a JSON object. Raises `SpecInvalid` with every invalid field."""
    try:
        return JOB_SPEC.validate_json(json.dumps(sent))
    except ValidationError as error:
        raise invalid(error.errors()) from error


def invalid(found: Sequence[Any]) -> SpecInvalid:
    """Pydantic's errors in the product's words."""
    items = [_placed(item) for item in found]
    # A body that is not an object has no fields to report as well.
    whole = next((reason for item in items if (reason := _of_body(item))), None)
    if whole:
        return SpecInvalid.at("", whole)
    details = validation.details(items, PATTERNS)
    return SpecInvalid(validation.summary(details), details)


def _placed(item: dict[str, Any]) -> dict[str, Any]:
    """An error with its place in the body, query, path or headers, in the wording for requests."""
    places, method = list(item["loc"]), None
    if places and places[0] in _PLACES:
        # A parameter that is repeated, as in `kind=model&kind=log`, has one name.
        places = places[1:2] if places[0] == "query" else places[1:]
    # The location in a job spec starts with the method's name. A (wrong) field may have the same name.
    if places and places[0] in METHODS:
        method = places.pop(0)
    reason = None
    if item["type"].startswith("union_tag"):
        places, reason = ["method"], say("method_unknown", methods=list(METHODS))
    elif item["type"] == "data_missing":
        places, reason = ["dataset_id"], say("data_missing")
    elif item["type"] == "extra_forbidden" and method:
        reason = say("value.not_a_field_of", method=SPECS[method].title)
    elif item["type"] == "string_pattern_mismatch" and places == ["cursor"]:
        reason = say("pattern.cursor")
    return {**item, "said": reason, "loc": tuple(places)}


def _of_body(item: dict[str, Any]) -> Message | None:
    """What is wrong with the body as a whole, if the error is about that."""
    if item["type"] == "json_invalid":
        position = item["loc"][0] if item["loc"] else None
        return say("body_not_json_at", position=position) if isinstance(position, int) else say("body_not_json")
    is_whole = not item["loc"] and item["type"].endswith(("model_type", "attributes_type", "dict_type", "missing"))
    return say("body_not_object") if is_whole else None


def library_config(spec: dict[str, Any], places: dict[str, Any]) -> PreferenceConfig:
    """The library's config for a resolved spec, with the `LibraryPaths` fields that the service chooses."""
    config = CONFIG_OF[spec["method"]]
    fields = {name: value for name, value in spec.items() if name in config.model_fields}
    return config(**{**fields, **places})
