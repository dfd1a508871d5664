"""What a body may hold has a bound everywhere: each text, list and object of each request has a largest size."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.limits import UPLOAD_PATHS
from jobs.settings import Settings
from tests.api import client, error_of, queue  # noqa: F401  # the fixtures

# A clone's fields are those of a spec, which is checked whole.
OPEN = {("/v1/jobs/{job_id}/clone", "")}
Found = tuple[str, str]


class Walk:
    """The places of a request's schema that accept a value of any size, and their kinds."""

    def __init__(self, schemas: dict[str, Any]) -> None:
        self._schemas, self._open = schemas, list[str]()

    def of(self, schema: dict[str, Any], place: str = "") -> Iterator[Found]:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in self._open:
                self._open.append(name)
                yield from self.of(self._schemas[name], place)
                self._open.pop()
            return
        parts = [part for name in ("anyOf", "oneOf", "allOf") for part in schema.get(name, [])]
        for part in parts:
            yield from self.of(part, place)
        if "const" in schema or "enum" in schema:
            return
        match schema.get("type"):
            case "string" if "maxLength" not in schema and not is_bounded(schema.get("pattern", ".*")):
                yield place, "string"
            case "array":
                yield from () if "maxItems" in schema else ((place, "array"),)
                yield from self.of(schema.get("items", {}), f"{place}[]")
            case "object":
                yield from self._of_object(schema, place)
            case None if not parts:
                yield place, "anything"
            case _:
                return

    def _of_object(self, schema: dict[str, Any], place: str) -> Iterator[Found]:
        more = schema.get("additionalProperties", True)
        if more is not False and "maxProperties" not in schema:
            yield place, "object"
        if isinstance(more, dict):
            yield from self.of(more, f"{place}{{}}")
        for name, inner in schema.get("properties", {}).items():
            yield from self.of(inner, f"{place}.{name}")


def is_bounded(pattern: str) -> bool:
    """Whether a regular expression matches texts of a largest length alone."""
    without_classes = re.sub(r"\[[^]]*\]", "x", pattern.replace(r"\.", "x"))
    return pattern.startswith("^") and pattern.endswith("$") and not re.search(r"[*+]|\{\d+,\}", without_classes)


def test_every_body_has_bounds(client: TestClient) -> None:  # noqa: F811
    document = client.get("/openapi.json").json()
    schemas, found, looked_at = document["components"]["schemas"], set[tuple[str, str, str]](), 0
    for path, operations in document["paths"].items():
        if path in UPLOAD_PATHS:
            continue  # rows, whose bytes have a limit while they arrive
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                looked_at += 1
                found |= {(path, *each) for each in Walk(schemas).of(content["schema"]) if (path, each[0]) not in OPEN}
    assert looked_at > 8
    assert sorted(found) == []


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """On SQLite alone, with the service's own limit of bodies."""
    found = Settings(data_dir=tmp_path / "data", redis_url=SecretStr("redis://127.0.0.1:1/0"))
    found.make_directories()
    return found


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, "string"),
        ({"type": "string", "pattern": "^[a-z]+$"}, "string"),
        ({"type": "array", "items": {"type": "integer"}}, "array"),
        ({"type": "array", "maxItems": 3, "items": {"type": "string"}}, "string"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "object"),
        ({"type": "object", "additionalProperties": False, "properties": {"a": {"anyOf": [{"type": "string"}]}}}, "string"),
        ({}, "anything"),
    ],
)
def test_what_has_no_bound_is_noticed(schema: dict[str, Any], kind: str) -> None:
    assert [each for _, each in Walk({}).of(schema)] == [kind]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lora_target_modules": ["q_proj"] * 60_000}, "lora_target_modules"),
        ({"lora_target_modules": "q" * 1_000}, "lora_target_modules.0"),
        ({"sample_prompts": ["س" * 30_000]}, "sample_prompts.0"),
        ({"report_to": ["wandb"] * 100}, "report_to"),
        ({"chat_template_kwargs": {"a": "b" * 2_000}}, "chat_template_kwargs.a"),
        ({"early_stopping_metric": "x" * 5_000}, "early_stopping_metric"),
        # Each within its bound, all together too large to store.
        ({"sample_prompts": ["س" * 15_000] * 5, "system_prompt": "س" * 10_000}, "sample_prompts"),
    ],
)
def test_a_spec_that_is_too_large_is_refused_at_its_field(
    client: TestClient,  # noqa: F811
    spec: dict[str, Any],
    change: dict[str, Any],
    field: str,
) -> None:
    for path in ("/v1/jobs", "/v1/jobs/validate"):
        reply = client.post(path, json={**spec, **change})
        assert error_of(reply, 422, "spec_invalid")["details"][0]["field"] == field
    assert client.get("/v1/jobs").json()["jobs"] == []
