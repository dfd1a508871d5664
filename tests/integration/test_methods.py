"""`GET /v1/methods`: what it says of each method is what a job spec takes, in both languages."""

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.routes.methods import list_methods
from api.words import catalogue
from jobs.spec import JOB_SPEC, SPECS, read_spec
from tests.api import client, database, queue
from trainer_core.config import METHODS, SETTINGS, SETTINGS_OF
from trainer_core.errors import SpecInvalid
from trainer_core.row_rules import PAIRS

__all__ = ["client", "database", "queue"]

OF_TYPE: dict[str, Any] = {
    "boolean": bool,
    "string": str,
    "list": list,
    "object": dict,
    "integer": int,
    "number": (int, float),
}


@pytest.fixture(scope="module")
def methods() -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(list_methods().model_dump_json())["methods"]}


def test_the_service_answers_it(client: TestClient, methods: dict[str, dict[str, Any]]) -> None:
    reply = client.get("/v1/methods")
    assert reply.status_code == 200
    assert reply.json() == {"methods": list(methods.values())}


def fields(method: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in method["fields"]}


def test_every_method_is_there_with_its_facts(methods: dict[str, dict[str, Any]]) -> None:
    assert tuple(methods) == METHODS
    for settings in SETTINGS:
        said = methods[settings.method_name]
        for fact in ("title", "full_name", "paper", "rows", "loss_needs_reference", "reward", "headline"):
            assert said[fact] == getattr(settings, fact)
        assert PAIRS in said["dataset_kinds"]
        assert (len(said["dataset_kinds"]) == 2) == (settings.rows == "labels")
        assert read_spec(said["example"]).method == settings.method_name
        assert said["description"]["en"] != said["description"]["ar"]


@pytest.mark.parametrize("name", METHODS)
def test_fields_are_those_of_the_spec_in_its_order(methods: dict[str, dict[str, Any]], name: str) -> None:
    said = fields(methods[name])
    assert list(said) == list(SPECS[name].model_fields)
    spec = read_spec({"method": name, "model_name": "m", "dataset_path": "x"})
    for field, of in said.items():
        if field not in ("method", "model_name", "dataset_path"):
            assert of["default"] == getattr(spec, field), field
            assert not of["required"]
        if of["default"] is None:
            assert of["nullable"] or of["required"], field
        else:
            assert isinstance(of["default"], tuple(OF_TYPE[each] for each in of["types"])), field
    settings = SETTINGS_OF[name]
    main = {field for field, of in said.items() if of["is_main"]}
    assert main == {*settings.loss_fields, *settings.main_fields}


@pytest.mark.parametrize("name", METHODS)
def test_bounds_and_choices_are_where_a_spec_begins_to_be_refused(methods: dict[str, dict[str, Any]], name: str) -> None:
    def refused(field: str, value: Any) -> bool:
        try:
            read_spec({"method": name, "model_name": "m", "dataset_path": "x", field: value})
        except SpecInvalid as error:
            return any(detail.field.split(".")[0] == field for detail in error.details)
        return False

    seen = 0
    for field, of in fields(methods[name]).items():
        for bound, beyond in (("minimum", -1), ("maximum", 1)):
            if (value := of[bound]) is not None:
                assert refused(field, value + beyond), field
                assert not refused(field, value), field
                seen += 1
            if (value := of[f"exclusive_{bound}"]) is not None:
                assert refused(field, value), field
                seen += 1
        for choice in of["choices"]:
            assert not refused(field, choice), (field, choice)
        # Texts beside a list are modules' names, which may be any.
        if "string" in of["types"] and of["choices"] and field != "early_stopping_metric":
            assert refused(field, "no such choice"), field
        if not of["nullable"]:
            assert refused(field, None) or field in ("dataset_path", "model_name"), field
    assert seen > 30


def test_types_of_fields_that_take_several(methods: dict[str, dict[str, Any]]) -> None:
    said = fields(next(iter(methods.values())))
    assert said["eval_steps"]["types"] == ["integer", "number", "string"]
    assert (said["eval_steps"]["choices"], said["eval_steps"]["unit"]) == (["epoch"], "steps")
    assert (said["eval_steps"]["exclusive_minimum"], said["eval_steps"]["maximum"]) == (0, 2**31 - 1)
    assert said["apply_chat_template"]["types"] == ["boolean", "string"]
    assert (said["sample_prompts"]["types"], said["sample_prompts"]["items"]) == (["list"], ["string"])
    assert (said["datasets"]["types"], said["datasets"]["items"]) == (["list"], ["object"])
    assert said["chat_template_kwargs"]["types"] == ["object"]
    assert said["report_to"]["choices"] == ["tensorboard", "wandb", "mlflow", "none"]
    assert said["max_steps"]["unit"] == "steps"
    assert said["max_length"]["unit"] == "tokens"
    assert (said["learning_rate_cap"]["nullable"], said["learning_rate_cap"]["default"] is None) == (True, False)


def test_every_field_has_a_label_and_help_in_both_languages_and_nothing_is_left_over(
    methods: dict[str, dict[str, Any]],
) -> None:
    names = {field for spec in SPECS.values() for field in spec.model_fields}
    own = {f"{method}.{field}" for method, spec in SPECS.items() for field in spec.model_fields}
    for language in ("en", "ar"):
        words = catalogue(language)
        labelled = {key.removeprefix("field.") for key in words if key.startswith("field.")}
        assert names <= labelled
        assert labelled - names <= own
        assert {f"method.{method}_text" for method in METHODS} == {key for key in words if key.startswith("method.")}
    helped = {key.removeprefix("help.") for key in catalogue("ar") if key.startswith("help.")}
    assert names <= helped
    assert helped - names <= own
    assert not [key for key in catalogue("en") if key.startswith("help.")], "English help is a field's description"
    for method in methods.values():
        for field in method["fields"]:
            for text in (field["label"], field["help"]):
                assert text["en"].strip()
                assert text["ar"].strip()
            assert field["help"]["en"].endswith((".", ")")), field["name"]
            assert len(field["label"]["en"]) <= 40, field["name"]


def test_what_a_method_without_a_reference_says_of_its_beta_names_none(methods: dict[str, dict[str, Any]]) -> None:
    for method in methods.values():
        said = fields(method)["beta"]
        texts = [said[part][language] for part in ("label", "help") for language in ("en", "ar")]
        assert all(method["loss_needs_reference"] is bool(re.search("reference|المرجع", text)) for text in texts), texts


def test_the_union_of_specs_is_made_of_the_same_methods() -> None:
    mapping = JOB_SPEC.json_schema()["discriminator"]["mapping"]
    assert set(mapping) == set(METHODS)
