"""Responses about methods: their facts, and every field of their job specs."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from api.words import Text, catalogue, text_of
from jobs.spec import example
from jobs.spec_fields import FieldType, SpecField, fields_of
from trainer_core.config import TrainingSettings
from trainer_core.config.base import Reward, Rows
from trainer_core.config.units import UnitName
from trainer_core.row_rules import FIELDS, Kind

Number = int | float


class MethodField(BaseModel):
    """A field of a job spec."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "beta",
                    "types": ["number"],
                    "items": [],
                    "choices": [],
                    "minimum": None,
                    "exclusive_minimum": 0,
                    "maximum": 100,
                    "exclusive_maximum": None,
                    "min_length": None,
                    "max_length": None,
                    "nullable": False,
                    "required": False,
                    "default": 0.1,
                    "unit": None,
                    "is_main": True,
                    "label": {"en": "Pull towards the reference", "ar": "شدة الجذب نحو المرجع"},
                    "help": {"en": "Strength of the pull towards the reference.", "ar": "شدة الجذب نحو المرجع."},
                }
            ]
        }
    )

    name: str
    types: list[FieldType] = Field(description="Types of a value, besides `null`.")
    items: list[FieldType] = Field(description="Types of a list's items; empty if the field takes no list.")
    choices: list[str] = Field(description="The allowed texts; empty if any text is allowed.")
    minimum: Number | None
    exclusive_minimum: Number | None
    maximum: Number | None
    exclusive_maximum: Number | None
    min_length: int | None = Field(
        description="Minimum number of characters of a text, items of a list or keys of an object."
    )
    max_length: int | None = Field(
        description="Maximum number of characters of a text, items of a list or keys of an object."
    )
    nullable: bool
    required: bool
    default: Any = Field(description="The value if a spec leaves the field out.")
    unit: UnitName | None = Field(description="What a number counts.")
    is_main: bool = Field(description="Whether a form shows the field first.")
    label: Text
    help: Text

    @classmethod
    def of(cls, field: SpecField, method: str) -> Self:
        arabic = catalogue("ar")
        # A field shared by several methods may mean something different in one of them.
        own = arabic.get(f"help.{method}.{field.name}")
        label = f"field.{method}.{field.name}"
        return cls(
            **{name: value for name, value in vars(field).items() if name != "description"},
            label=text_of(label if label in arabic else f"field.{field.name}"),
            help=Text(en=field.description, ar=own or arabic[f"help.{field.name}"]),
        )


class MethodDescription(BaseModel):
    """A preference method."""

    name: str = Field(description="The `method` of a job spec.", examples=["kto"])
    title: str = Field(examples=["KTO"])
    full_name: str = Field(examples=["Kahneman-Tversky Optimization"])
    paper: str = Field(description="An arXiv identifier.", examples=["2402.01306"])
    description: Text
    rows: Rows = Field(description="The rows that the loss uses: single answers with a label, or pairs.")
    dataset_kinds: list[Kind] = Field(description="Kinds of dataset that it can train on.", examples=[["kto", "pairs"]])
    loss_needs_reference: bool = Field(description="Whether the reference model is part of the loss.")
    reward: Reward = Field(description="How an answer's log-ratio to the reference is reduced over its tokens.")
    headline: bool = Field(description="Whether introductions name it.")
    example: dict[str, Any] = Field(
        description="A job spec that trains the small model on the sample data.",
        examples=[{"method": "kto", "model_name": "tafdil/tiny-arabic-qwen-2", "dataset_path": "samples/kto_train.jsonl"}],
    )
    fields: list[MethodField] = Field(description="Every field of its job spec.")

    @classmethod
    def of(cls, settings: type[TrainingSettings]) -> Self:
        name = settings.method_name
        return cls(
            name=name,
            title=settings.title,
            full_name=settings.full_name,
            paper=settings.paper,
            description=text_of(f"method.{name}_text"),
            rows=settings.rows,
            dataset_kinds=[kind for kind in FIELDS if settings.takes(kind)],
            loss_needs_reference=settings.loss_needs_reference,
            reward=settings.reward,
            headline=settings.headline,
            example=example(settings),
            fields=[MethodField.of(field, name) for field in fields_of(settings)],
        )


class MethodList(BaseModel):
    """Every method."""

    methods: list[MethodDescription]
