"""Descriptions of a job spec's fields, derived from the JSON schema that validates them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal, cast

from jobs.spec import SPECS
from trainer_core.config import TrainingSettings
from trainer_core.config.units import UnitName

FieldType = Literal["number", "integer", "boolean", "string", "list", "object"]
_TYPES = {"array": "list"}


@dataclass(frozen=True)
class SpecField:
    """One field of a method's job spec."""

    name: str
    types: list[FieldType]
    items: list[FieldType]
    """Types of a list's items."""
    choices: list[str]
    """The values that the field, or an item of its list, may take; empty if any text is allowed."""
    minimum: float | None
    exclusive_minimum: float | None
    maximum: float | None
    exclusive_maximum: float | None
    min_length: int | None
    max_length: int | None
    """Characters of a text, items of a list, or keys of an object."""
    nullable: bool
    required: bool
    default: Any
    unit: UnitName | None
    is_main: bool
    """Whether a form shows it first."""
    description: str


def fields_of(settings: type[TrainingSettings]) -> list[SpecField]:
    """Every field of a method's job spec, in declaration order."""
    spec = SPECS[settings.method_name]
    schema = spec.model_json_schema()
    main = {*settings.loss_fields, *settings.main_fields}
    found: list[SpecField] = []
    for name, field in spec.model_fields.items():
        of_field = schema["properties"][name]
        alternatives = [each for each in of_field.get("anyOf", [of_field]) if each.get("type") != "null"]
        items = [each["items"] for each in alternatives if "items" in each]
        choices = [*_choices(alternatives), *_choices(items)]
        if name == "early_stopping_metric":
            choices = list(settings.early_stopping_metrics)
        found.append(
            SpecField(
                name=name,
                types=_types(alternatives),
                items=_types(items),
                choices=list(dict.fromkeys(choices)),
                **_bounds(alternatives),
                min_length=_first(alternatives, "minLength", "minItems", "minProperties"),
                max_length=_first(alternatives, "maxLength", "maxItems", "maxProperties"),
                nullable=len(alternatives) < len(of_field.get("anyOf", [of_field])),
                required=field.is_required(),
                default=None if field.is_required() else field.get_default(call_default_factory=True, validated_data={}),
                unit=_first([of_field, *alternatives], "x-unit"),
                is_main=name in main,
                description=of_field["description"],
            )
        )
    return found


def _types(schemas: list[dict[str, Any]]) -> list[FieldType]:
    # A schema without a type is a reference to an object, because a spec's enumerations are literals.
    names = [each.get("type", "object") for each in schemas]
    return cast("list[FieldType]", list(dict.fromkeys(_TYPES.get(name, name) for name in names)))


def _choices(schemas: list[dict[str, Any]]) -> Iterator[str]:
    for each in schemas:
        yield from each.get("enum", [])
        if "const" in each:
            yield each["const"]


def _bounds(alternatives: list[dict[str, Any]]) -> dict[str, float | None]:
    """The widest bounds of the alternatives that are numbers."""
    numbers = [each for each in alternatives if each.get("type") in ("number", "integer")]
    found: dict[str, float | None] = dict.fromkeys(("minimum", "exclusive_minimum", "maximum", "exclusive_maximum"))
    if not numbers:
        return found
    # If two bounds have the same value, the inclusive one is wider.
    lowest = min((each.get("minimum", each.get("exclusiveMinimum", -inf)), "minimum" not in each) for each in numbers)
    highest = max((each.get("maximum", each.get("exclusiveMaximum", inf)), "maximum" in each) for each in numbers)
    if isfinite(lowest[0]):
        found["exclusive_minimum" if lowest[1] else "minimum"] = lowest[0]
    if isfinite(highest[0]):
        found["maximum" if highest[1] else "exclusive_maximum"] = highest[0]
    return found


def _first(schemas: list[dict[str, Any]], *names: str) -> Any:
    return next((each[name] for each in schemas for name in names if name in each), None)
