"""Parts of replies that hold sentences: stored in English, and worded in the reply's language when sent."""

from typing import Any

from pydantic import GetJsonSchemaHandler, RootModel, model_serializer
from pydantic_core import CoreSchema

from api.errors import DETAIL_SCHEMA, ERROR_FIELDS_SCHEMA, SENTENCE_SCHEMA
from api.language import worded_detail, worded_error, worded_tree, worded_warning
from trainer_core.recipes import MOVEMENTS, RECIPES


class ErrorFields(RootModel[dict[str, Any]]):
    """An error, as in a reply's `error`."""

    @model_serializer
    def _worded(self) -> dict[str, Any]:
        return worded_error(self.root)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return ERROR_FIELDS_SCHEMA


class WarningFields(RootModel[dict[str, Any]]):
    """A warning about a run."""

    @model_serializer
    def _worded(self) -> dict[str, Any]:
        return worded_warning(self.root)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        properties = {"code": {"type": "string"}, **SENTENCE_SCHEMA}
        return {"type": "object", "required": ["code", "message"], "properties": properties}


class DetailFields(RootModel[dict[str, Any]]):
    """A warning about a dataset."""

    @model_serializer
    def _worded(self) -> dict[str, Any]:
        return worded_detail(self.root)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return DETAIL_SCHEMA


class WordedFields(RootModel[dict[str, Any]]):
    """A part of a report. Objects in it with a `message_code` are sentences."""

    @model_serializer
    def _worded(self) -> dict[str, Any]:
        return worded_tree(self.root)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": True}


class RecipeFields(RootModel[dict[str, Any]]):
    """The recipe of a job: what it went by, and the fields that it set."""

    @model_serializer
    def _worded(self) -> dict[str, Any]:
        return worded_tree(self.root)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        set_by_it = {
            "type": "object",
            "description": "A field that the recipe set. `message` says why it has this value.",
            "required": ["name", "value", "message"],
            "properties": {"name": {"type": "string"}, "value": {}, **SENTENCE_SCHEMA},
        }
        count = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
        properties = {
            "name": {"type": "string", "enum": list(RECIPES)},
            "version": {"type": "integer", "description": "Of the recipes' tables. A job keeps the values of its version."},
            "weights": {**count, "description": "The weights of the model; null if unknown."},
            "rows": {**count, "description": "Training rows, as the method counts them; null if unknown."},
            "size": {"type": "string", "enum": [each.name for each in MOVEMENTS]},
            "is_measured": {
                "type": "boolean",
                "description": "Whether the values come from runs measured on models of this size, or from published ones.",
            },
            **SENTENCE_SCHEMA,
            "fields": {"type": "array", "items": set_by_it},
        }
        return {"type": "object", "required": ["name", "version", "message", "fields"], "properties": properties}
