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
    create_model,
    model_validator,
)

from jobs.settings import GpuClass
from trainer_core.config import CONFIG_OF, METHODS, SETTINGS, Method, PreferenceConfig, TrainingSettings
from trainer_core.errors import Detail, SpecInvalid
from trainer_core.mix_options import MOST_DATASETS, Take, check_mix

_ID = r"^[0-9a-f]{32}$"
# One or two names of letters, digits, dots, dashes and underscores, none of which starts with a dot: never a path.
_MODEL = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$"


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain a NUL character, which databases cannot store")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("must not contain an unpaired surrogate: a character was cut in half")
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
    pattern=_MODEL,
    description="A model below the models directory, e.g. `Qwen/Qwen2.5-0.5B-Instruct` or `tafdil/tiny-arabic-qwen-2`.",
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
    dataset_id: str | None = Field(None, pattern=_ID, description="An uploaded dataset.")
    dataset_path: str | None = Field(
        None, min_length=1, max_length=500, description="A file, relative to the data directory."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset_id is None) == (self.dataset_path is None):
            raise ValueError("set exactly one of dataset_id and dataset_path")
        return self


class _JobFields(Sent):
    name: PlainText | None = Field(None, min_length=1, max_length=200, description="A name for the job.")
    model_name: str = MODEL_NAME
    ref_model_name: str | None = Field(
        None,
        max_length=200,
        pattern=_MODEL,
        description="The reference model; `null` uses the model itself, as it was before training.",
    )
    adapter_name: str | None = Field(
        None,
        max_length=200,
        pattern=_MODEL,
        description="A LoRA adapter below the models directory to continue training. Its own rank, alpha and target "
        "modules apply.",
    )
    priority: int = Field(0, ge=-100, le=100, description="Jobs with a higher priority run first; among equals, the oldest.")
    gpu_class: GpuClass | None = Field(
        None,
        description="Only workers of this class (`TAFDIL_GPU_CLASS`) run the job, e.g. `a100`; `null` allows any worker.",
    )
    dataset_id: str | None = Field(None, pattern=_ID, description="Training data: an uploaded dataset.")
    dataset_path: str | None = Field(
        None, min_length=1, max_length=500, description="Training data: a file, relative to the data directory."
    )
    datasets: list[MixedDataset] | None = Field(
        None,
        min_length=1,
        max_length=MOST_DATASETS,
        description="Training data: several datasets, each with optional `rows` or `weight`. Their validation parts are "
        "combined.",
    )
    eval_dataset_id: str | None = Field(None, pattern=_ID, description="Validation data: an uploaded dataset.")
    eval_dataset_path: str | None = Field(
        None, min_length=1, max_length=500, description="Validation data: a file, relative to the data directory."
    )

    @model_validator(mode="after")
    def _all_storable(self) -> Self:
        for name, value in self:
            if name.endswith("_path"):
                continue  # checked when it is resolved in the data directory
            for text in _flat(value):
                try:
                    _storable(text if isinstance(text, str) else "")
                except ValueError as error:
                    raise ValueError(f"{name} {error}") from error
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.dataset_id, self.dataset_path, self.datasets)) != 1:
            raise ValueError("set exactly one of dataset_id, dataset_path and datasets")
        check_mix(self.datasets or [], [each.dataset_id or str(each.dataset_path) for each in self.datasets or []])
        if self.eval_dataset_id is not None and self.eval_dataset_path is not None:
            raise ValueError("set at most one of eval_dataset_id and eval_dataset_path")
        validation = getattr(self, "validation_split", None)
        if validation is not None and (self.eval_dataset_id or self.eval_dataset_path):
            raise ValueError("validation_split cannot be combined with an evaluation dataset")
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
_TAGS = {"body", "query", "path", "header", *METHODS}
_ALTERNATIVES = (
    ("dataset_id", "dataset_path", "datasets"),
    ("eval_dataset_id", "eval_dataset_path", "validation_split"),
    ("warmup_ratio", "warmup_steps"),
)


def changed_spec(sent: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A spec as it was sent, with changes.

    A changed data source or warm-up replaces the one that was sent. Another method leaves out the fields that it lacks.
    """
    replaced = {name for names in _ALTERNATIVES if overrides.keys() & set(names) for name in names}
    if changed := SPECS.get(str(overrides.get("method"))):
        replaced |= sent.keys() - changed.model_fields.keys()
    return {**{name: value for name, value in sent.items() if name not in replaced}, **overrides}


def dataset_ids(resolved: dict[str, Any]) -> set[str]:
    """The uploaded datasets that a resolved spec names, for training or for validation."""
    named = [resolved.get("dataset_id"), resolved.get("eval_dataset_id")]
    # Jobs stored before the field existed have no list.
    return {each for each in [*named, *(one["dataset_id"] for one in resolved.get("datasets") or [])] if each}


def read_spec(sent: dict[str, Any]) -> AnyJobSpec:
    """Reads a spec from a JSON object. Raises `SpecInvalid` with every invalid field."""
    try:
        return JOB_SPEC.validate_json(json.dumps(sent))
    except ValidationError as error:
        raise invalid(error.errors()) from error


def invalid(found: Sequence[Any]) -> SpecInvalid:
    """Pydantic's errors in the product's words."""
    details = [_detail(item) for item in found]
    first = details[0]
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return SpecInvalid(f"{first.field}: {first.reason}{more}" if first.field else f"{first.reason}{more}", details)


def _detail(item: dict[str, Any]) -> Detail:
    places = list(item["loc"])
    while places and places[0] in _TAGS:
        places.pop(0)
    field = ".".join(str(place) for place in places)
    if item["type"] == "json_invalid":
        return Detail("", f"the body is not valid JSON: {item.get('ctx', {}).get('error', item['msg'])}")
    if not field and item["type"].endswith(("model_type", "attributes_type", "missing")):
        return Detail("", "the body must be a JSON object, sent with the header Content-Type: application/json")
    if item["type"] == "extra_forbidden":
        return Detail(field, "is not a field of this method's spec")
    if item["type"].startswith("union_tag"):
        return Detail("method", f"must be one of {', '.join(METHODS)}")
    return Detail(field, str(item["msg"]).removeprefix("Value error, "))


def library_config(spec: dict[str, Any], places: dict[str, Any]) -> PreferenceConfig:
    """The library's config for a resolved spec, with the fields of `LibraryPaths`, which the service chooses."""
    config = CONFIG_OF[spec["method"]]
    fields = {name: value for name, value in spec.items() if name in config.model_fields}
    return config(**{**fields, **places})
