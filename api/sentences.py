"""Parts of replies that hold sentences: stored in English, and worded in the reply's language when sent."""

from typing import Any

from pydantic import GetJsonSchemaHandler, RootModel, model_serializer
from pydantic_core import CoreSchema

from api.errors import DETAIL_SCHEMA, ERROR_FIELDS_SCHEMA, SENTENCE_SCHEMA
from api.language import worded_detail, worded_error, worded_warning


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
