"""Units of the settings' numbers. Torch-free."""

from dataclasses import dataclass
from typing import Literal

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

UnitName = Literal[
    "tokens", "steps", "epochs", "rows", "pairs", "passes", "evaluations", "checkpoints", "prompts", "processes"
]


@dataclass(frozen=True)
class Unit:
    """A field's unit, in the metadata of its type; the JSON schema has it as `x-unit`."""

    name: UnitName

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core_schema), "x-unit": self.name}
