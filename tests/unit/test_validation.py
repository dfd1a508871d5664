"""What pydantic finds in requests, in the product's words: every error that a request can give has a code."""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import Query
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from api.routes import artifacts, checks, comparisons, datasets, jobs, keys, methods
from api.routes.keys import KeyRequest, SignIn
from api.schemas import CancelOptions, RerunOptions
from jobs.artifact_service import PushRequest
from jobs.comparisons import ComparisonRequest
from jobs.dataset_service import PreviewRequest
from jobs.spec import JOB_SPEC, SPECS, MixedDataset, PlainText, example, invalid, read_spec
from trainer_core.config import SETTINGS
from trainer_core.errors import Detail, SpecInvalid
from trainer_core.validation import details
from trainer_core.wording import is_known, say, worded

WRONG: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1,
        2**70,
        1.5,
        -1.5,
        1e300,
        math.nan,
        math.inf,
        "",
        " ",
        "a b",
        "../x",
        "x" * 30_000,
        "\x00",
        "\ud800",
    ),
    *(
        [],
        [None],
        [1],
        [""],
        ["x"] * 300,
        [[]],
        [{}],
        {},
        {"a": []},
        {"int": [1]},
        {"a": "\x00"},
        {str(n): 1 for n in range(99)},
    ),
]
BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    **{each.method_name: (SPECS[each.method_name], example(each)) for each in SETTINGS},
    "key": (KeyRequest, {}),
    "sign_in": (SignIn, {"key": "k"}),
    "cancel": (CancelOptions, {}),
    "rerun": (RerunOptions, {}),
    "push": (PushRequest, {"name": "n"}),
    "preview": (PreviewRequest, {"model_name": "m"}),
    "compare": (ComparisonRequest, {"prompt": "p"}),
    "mixed": (MixedDataset, {"dataset_path": "p"}),
}
ROUTERS = (checks, methods, jobs, comparisons, datasets, artifacts, keys)
# Pydantic's words, and regular expressions.
FOREIGN = ("Input should", "should be", "should have", "should match", "Value error", "Field required", "Extra inputs", "^[")


def check(found: list[Detail]) -> None:
    assert len({detail.field for detail in found}) == len(found), "one detail a field"
    for detail in found:
        assert is_known(detail.code), detail
        assert detail.code not in ("value.not_valid", "value.pattern", "kind.other"), detail
        arabic = worded(str(detail.code), detail.params, "ar")
        for text in (detail.reason, arabic):
            assert not [word for word in FOREIGN if word in text], detail


@pytest.mark.parametrize("name", BODIES)
def test_every_error_of_a_body_has_a_code(name: str) -> None:
    model, good = BODIES[name]
    seen: set[str] = set()
    for field in [*model.model_fields, "unknown_field"]:
        for value in WRONG:
            try:
                (JOB_SPEC if name in SPECS else TypeAdapter(model)).validate_python({**good, field: value})
            except ValidationError as error:
                errors = error.errors()
                seen |= {each["type"] for each in errors}
                check(invalid(errors).details)
        without = {key: value for key, value in good.items() if key != field}
        if without != good and model.model_fields[field].is_required() and field != "method":
            with pytest.raises(ValidationError) as missing:
                TypeAdapter(model).validate_python(without)
            assert [(one.field, one.code) for one in invalid(missing.value.errors()).details] == [(field, "value.missing")]
    assert "extra_forbidden" in seen


def parameters() -> Iterator[tuple[str, str, Any]]:
    for route in (route for part in ROUTERS for route in part.router.routes):
        if isinstance(route, APIRoute):
            for dependant in (route.dependant, *route.dependant.dependencies):
                for kind, fields in (("query", dependant.query_params), ("header", dependant.header_params)):
                    yield from ((f"{route.name} {field.alias}", kind, field) for field in fields)


def test_every_error_of_a_parameter_has_a_code() -> None:
    count = 0
    for name, kind, field in parameters():
        for value in ("", "x" * 300, "a b", "-1", "0", "1.5", "nan", str(2**70), "é", ":", "x:", ["x"] * 50):
            _, errors = field.validate(value, {}, loc=(kind, field.alias))
            if errors:
                count += 1
                found = invalid(errors).details
                check(found)
                assert found[0].field.split(".")[0] == field.alias, name
    assert count > 100


def test_what_is_missing_is_reported_at_its_field_once() -> None:
    with pytest.raises(SpecInvalid) as empty:
        read_spec({"method": "kto"})
    assert [(one.field, one.code) for one in empty.value.details] == [
        ("model_name", "value.missing"),
        ("dataset_id", "data_missing"),
    ]
    with pytest.raises(SpecInvalid) as unknown:
        read_spec({})
    assert [(one.field, one.code) for one in unknown.value.details] == [("method", "method_unknown")]
    with pytest.raises(SpecInvalid) as two:
        read_spec({"method": "ipo", "model_name": "m", "dataset_id": "0" * 32, "dataset_path": "p"})
    assert [(one.field, one.code) for one in two.value.details] == [("dataset_path", "set_one_of")]


@pytest.mark.parametrize(
    ("item", "code"),
    [
        ({"type": "json_invalid", "loc": ("body", 7), "ctx": {"error": "Expecting value"}}, "body_not_json_at"),
        ({"type": "missing", "loc": ("body",)}, "body_not_object"),
        ({"type": "model_attributes_type", "loc": ("body",)}, "body_not_object"),
        ({"type": "string_pattern_mismatch", "loc": ("query", "cursor"), "ctx": {"pattern": "^[0-9]$"}}, "pattern.cursor"),
    ],
)
def test_a_body_or_a_page_that_cannot_be_read_is_worded(item: dict[str, Any], code: str) -> None:
    assert invalid([{"msg": "", "input": None, **item}]).details[0].code == code


def test_an_unforeseen_error_shows_nothing_of_pydantics() -> None:
    (found,) = details([{"type": "url_parsing", "loc": ("url",), "msg": "Input should be a valid URL", "input": "x"}])
    assert (found.code, found.reason) == ("value.not_valid", "is not valid")


@pytest.mark.parametrize("name", ["kto", "bool", "a[b]", "body"])
def test_an_unknown_field_is_named_whatever_it_is_called(name: str) -> None:
    with pytest.raises(SpecInvalid) as error:
        read_spec({**example(SETTINGS[0]), name: 1})
    assert [one.field for one in error.value.details] == [name]


def test_a_union_is_one_reason() -> None:
    class Both(BaseModel):
        model_config = ConfigDict(strict=True)
        rows: int | list[int]
        some: bool | str

    with pytest.raises(ValidationError) as error:
        Both.model_validate({"rows": [1, "x"], "some": []})
    found = details(error.value.errors())
    assert [(one.field, one.reason) for one in found] == [
        ("rows.1", "must be a whole number"),
        ("some", say("value.one_of", choices=["true", "false", say("kind.string")])),
    ]


@pytest.mark.parametrize(("text", "reason"), [("", "must not be empty"), ("x" * 201, "must have at most 200 characters")])
def test_the_length_of_a_text_is_in_characters(text: str, reason: str) -> None:
    kind = TypeAdapter(Annotated[PlainText | None, Query(min_length=1, max_length=200)])
    with pytest.raises(ValidationError) as raised:
        kind.validate_python(text)
    assert [str(each.reason) for each in details(raised.value.errors())] == [reason]
