"""Words pydantic's errors as sentences of the catalogues. Nobody reads pydantic's own text. Torch-free."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from trainer_core.errors import Detail
from trainer_core.wording import Message, is_known, say

# How pydantic writes the members of a union into an error's location.
_MEMBER = re.compile(r"(bool|int|float|str|none|date|datetime)|\w[\w-]*\[.*\]|constrained-\w+")
# Errors that mean that a value has a different kind from the one that a union's member expects.
_OTHER_KIND = re.compile(r"(\w+_type|literal_error|enum|none_required|int_from_float|\w+_parsing)$")
_CHOICE = re.compile(r"'([^']*)'|(\d+|True|False)")
# Errors worded like another type's, because they mean the same to people.
_SAME = {
    "bool_parsing": "bool_type",
    "int_parsing": "int_type",
    "int_parsing_size": "int_type",
    "int_from_float": "int_type",
    "float_parsing": "float_type",
    "string_sub_type": "string_type",
    "string_unicode": "string_type",
    "tuple_type": "list_type",
    "set_type": "list_type",
    "frozen_set_type": "list_type",
    "iterable_type": "list_type",
    "model_type": "dict_type",
    "model_attributes_type": "dict_type",
    "dataclass_type": "dict_type",
    "mapping_type": "dict_type",
    "enum": "literal_error",
}


class FieldError(ValueError):
    """For validators of several fields: names the wrong field, and why it is wrong."""

    def __init__(self, field: str, reason: Message) -> None:
        super().__init__(reason)
        self.field = field


def details(found: Iterable[Mapping[str, Any]], patterns: Mapping[str, str] | None = None) -> list[Detail]:
    """The errors of a `pydantic.ValidationError`, one detail for each value, in pydantic's order.

    Args:
        found: its `errors()`. If one has a `said`, that is its sentence.
        patterns: maps fields' regular expressions to the codes of sentences that say what they allow.
    """
    of_field: dict[str, list[Mapping[str, Any]]] = {}
    for item in found:
        of_field.setdefault(_field(item), []).append(item)
    inner = {field.rpartition(".")[0] for field in of_field}
    return [
        Detail(field, _reason(items, patterns or {}))
        for field, items in of_field.items()
        # A list may be the right member of a union, with a wrong item in it.
        if not (field in inner and all(_OTHER_KIND.fullmatch(item["type"]) for item in items))
    ]


def summary(found: Sequence[Detail]) -> str:
    """The first error and how many more there are, as one sentence."""
    first, more = found[0], len(found) - 1
    if not first.field:
        return first.reason
    if more:
        return say("request_invalid_more", field=first.field, reason=first.reason, n=more)
    return say("request_invalid", field=first.field, reason=first.reason)


def _field(item: Mapping[str, Any]) -> str:
    """The path of a value, without the members of unions."""
    places = [str(place) for place in item["loc"]]
    if item["type"] == "extra_forbidden":
        # The last name is whatever was sent.
        return ".".join(places)
    if len(places) > 1 and _MEMBER.fullmatch(places[-1]):
        places.pop()
    places = [place for place in places if not re.fullmatch(r"\w[\w-]*\[.*\]", place)]
    named = getattr(item.get("ctx", {}).get("error"), "field", "")
    return ".".join([*places, *([named] if named else [])])


def _reason(items: list[Mapping[str, Any]], patterns: Mapping[str, str]) -> Message:
    """Why a value is wrong. For a union, the error of the member that has its kind; otherwise the allowed kinds."""
    if len(items) > 1:
        of_its_kind = [item for item in items if not _OTHER_KIND.fullmatch(item["type"])]
        if not of_its_kind:
            kinds = [kind for item in items for kind in _kinds(item)]
            return say("value.one_of", choices=list(dict.fromkeys(kinds)))
        items = of_its_kind
    return _said(items[0], patterns)


def _kinds(item: Mapping[str, Any]) -> list[str]:
    """What the member of a union accepts: its choices, or its kind in words."""
    kind = _kind(item)
    if kind == "literal_error":
        return _choices(item)
    if kind == "bool_type":
        return ["true", "false"]
    name = f"kind.{kind.removesuffix('_type')}"
    return [say(name)] if is_known(name) else [say("kind.other")]


def _kind(item: Mapping[str, Any]) -> str:
    return _SAME.get(str(item["type"]), str(item["type"]))


def _choices(item: Mapping[str, Any]) -> list[str]:
    return [text or other for text, other in _CHOICE.findall(item["ctx"]["expected"])]


def _said(item: Mapping[str, Any], patterns: Mapping[str, str]) -> Message:
    if item.get("said"):
        return item["said"]
    kind, ctx = _kind(item), cast("dict[str, Any]", item.get("ctx", {}))
    if kind in ("value_error", "assertion_error"):
        (reason,) = ctx["error"].args[:1] or ("",)
        return reason if isinstance(reason, Message) else say("value.refused", problem=str(reason))
    if kind == "literal_error":
        choices = _choices(item)
        return say("value.one_of", choices=choices) if len(choices) > 1 else say("value.only", choice=choices[0])
    if kind == "string_pattern_mismatch":
        return say(patterns.get(ctx["pattern"], "value.pattern"))
    if kind in ("too_long", "too_short") and isinstance(item.get("input"), str):
        # A text whose length is checked outside of pydantic's own type has the error of a list.
        kind = f"string_{kind}"
    if kind.endswith(("too_long", "too_short")):
        return say(f"value.{kind}", n=ctx["max_length" if kind.endswith("too_long") else "min_length"])
    bounds = {"bound": next(iter(ctx.values()))} if kind.startswith(("greater_than", "less_than", "multiple_of")) else {}
    return say(f"value.{kind}", **bounds) if is_known(f"value.{kind}") else say("value.not_valid")
