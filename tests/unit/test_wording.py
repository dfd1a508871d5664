"""The catalogues of `trainer_core.wording`: each code has both languages, and each sentence that people read has a code."""

import ast
import copy
import json
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.states import JobState, PauseReason, Request, TaskKind, TaskState
from trainer_core.errors import Detail, SpecInvalid
from trainer_core.traits import TRAITS
from trainer_core.wording import LANGUAGES, Language, Message, Text, catalogue, is_known, plural, said, say, worded

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "trainer_core" / "wording"
PACKAGES = ("trainer_core", "jobs", "worker", "api", "tafdil")
FORMS = {"en": {"one", "other"}, "ar": {"zero", "one", "two", "few", "many", "other"}}
# What calls with a sentence: an error of the product, one of its details, a warning.
SPEAKERS = re.compile(
    r"(\w*Invalid|\w*Refused|\w*Mismatch|\w*NotFound|\w*Conflict|\w*Installed|\w*Full|\w*Lost|NonfiniteLoss|Forbidden|"
    r"Unauthorized|RateLimited|TooLarge|ClientTooSlow|DataOverlong|Detail|error_dict|TafdilError|at|warning)$"
)


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield path, node, getattr(node.func, "id", getattr(node.func, "attr", ""))


def forms(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else list(text.values())


def places(text: Text) -> set[str]:
    return {name for form in forms(text) for name in re.findall(r"{(\w+)}", form)}


def test_every_code_is_in_one_catalogue_and_in_both_languages() -> None:
    entries = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in FOLDER.glob("*.json")]
    counts = Counter(code for _, entry in entries for code in entry)
    assert [code for code, count in counts.items() if count > 1] == []
    for name, entry in entries:
        assert list(entry) == sorted(entry), name
        for code, texts in entry.items():
            assert list(texts) == list(LANGUAGES), code
            assert re.fullmatch(r"[a-z0-9_.]+", code), code


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_in_its_language_and_belongs_to_one_code(language: Language) -> None:
    seen: dict[str, str] = {}
    for code, text in catalogue(language).items():
        if isinstance(text, dict):
            assert "other" in text, code
            assert set(text) <= FORMS[language], code
            assert code.endswith("_n") or "n" in places(catalogue("en")[code]) | places(text), code
        for form in forms(text):
            assert form.strip() == form, code
            assert form, code
            letters = re.sub(r"{\w+}|[^\w]", "", form)
            assert bool(re.search(r"[\u0600-\u06ff]", letters)) == (language == "ar" and letters != ""), code
            assert seen.setdefault(form, code) == code, (form, code)


def test_both_languages_take_the_same_values() -> None:
    for code, text in catalogue("en").items():
        assert places(text) - {"n"} == places(catalogue("ar")[code]) - {"n"}, code


def test_every_sentence_that_is_said_is_known_with_its_values() -> None:
    for path, call, name in calls():
        if name != "say" or path.is_relative_to(FOLDER):
            continue
        assert call.args, (path, call.lineno)
        for code in _constants(call.args[0]):
            assert code in catalogue("en"), (path, call.lineno, code)
            given = {keyword.arg for keyword in call.keywords}
            if None not in given:
                assert places(catalogue("en")[code]) <= given, (path, call.lineno, code)


def test_every_code_is_used() -> None:
    constants = {
        node.value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # Codes that are put together, by their beginning.
    made = tuple(value for value in constants if re.fullmatch(r"[a-z_.]+\.", value))
    assert [code for code in catalogue("en") if code not in constants and not code.startswith(made)] == []


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("task", list(TaskKind)),
        ("job_state", list(JobState)),
        ("job_already", [state for state in JobState if state.is_final]),
        ("task_already", [Request.CANCEL, *(state for state in TaskState if state.is_final)]),
        ("cli.state", list(JobState)),
        ("limit", [reason for reason in PauseReason if reason is not PauseReason.REQUEST]),
        ("trait", [trait.name for trait in TRAITS]),
    ],
)
def test_every_value_has_a_word(family: str, values: list[str]) -> None:
    """Codes that are put together when they are said."""
    assert [value for value in values if not is_known(f"{family}.{value}")] == []


def test_no_error_and_no_warning_is_without_a_code() -> None:
    found: list[tuple[Path, int]] = []
    for path, call, name in calls():
        # The logs of processes are for operators.
        is_log = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "log"
        # The first argument of these is the name of a field.
        said_in = call.args[1:] if name in ("at", "Detail") else call.args
        if SPEAKERS.match(name) and not is_log and any(map(_is_sentence, said_in)):
            found.append((path, call.lineno))
    assert found == []


def _constants(node: ast.AST) -> Iterator[str]:
    parts = (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,)
    yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def _is_sentence(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_sentence(node.body) or _is_sentence(node.orelse)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    )


@pytest.mark.parametrize(
    ("n", "form"),
    [(0, "zero"), (1, "one"), (2, "two"), (3, "few"), (10, "few"), (11, "many"), (99, "many"), (100, "other"), (103, "few")],
)
def test_arabic_has_six_plural_forms(n: int, form: str) -> None:
    assert plural(n, "ar") == form
    assert plural(n, "en") == ("one" if n == 1 else "other")


def test_a_message_keeps_its_code_through_copies_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[str, dict[str, Text]] = {
        "en": {"outer": "{name} has {count}: {why}", "inner": {"one": "{n} row", "other": "{n} rows"}},
        "ar": {"outer": "في {name} {count}: {why}", "inner": {"two": "صفان", "other": "{n} صف"}},
    }
    monkeypatch.setattr("trainer_core.wording.catalogue", texts.__getitem__)
    message = say("outer", name="a.csv", count=12_000, why=say("inner", n=2))
    assert message == "a.csv has 12,000: 2 rows"
    for same in (copy.deepcopy(message), pickle.loads(pickle.dumps(message))):  # noqa: S301
        assert isinstance(same, Message)
        assert same.as_dict() == message.as_dict()
    stored = json.loads(json.dumps(message.as_dict()))
    assert worded(stored["code"], stored["params"]) == message
    assert worded(stored["code"], stored["params"], "ar") == "في \u2068a.csv\u2069 12,000: صفان"

    assert said(message) == {"message": str(message), "message_code": "outer", "params": stored["params"]}
    assert said("old") == {"message": "old"}
    error = SpecInvalid.at("name", message).as_dict()
    assert error["message_code"] == "outer"
    assert error["params"] == stored["params"]
    assert error["details"] == [{"field": "name", "reason": str(message), **stored}]
    assert Detail("name", "old").as_dict() == {"field": "name", "reason": "old"}


def test_arabic_has_the_singular_after_hundreds() -> None:
    """11 to 99 take an accusative with tanwin, 100 does not."""
    for code, text in catalogue("ar").items():
        if isinstance(text, dict):
            assert not re.search(r"{n} \w+ًا(?!\w)", text["other"]), code


def test_arabic_quotes_as_arabic_does() -> None:
    assert [code for code, text in catalogue("ar").items() for form in forms(text) if re.search("[“”]", form)] == []


@pytest.mark.parametrize(
    ("bound", "shown"),
    [(1e6, "1,000,000"), (1234567.5, "1.23457e+06"), (1e300, "1e+300"), (0.5, "0.5")],
)
def test_a_large_whole_number_is_not_a_power(bound: float, shown: str) -> None:
    assert say("value.less_than_equal", bound=bound) == f"must be at most {shown}"


def test_the_minus_of_a_number_stands_before_it_in_arabic() -> None:
    values = {"mean": -0.5, "low": -2, "high": 1}
    assert worded("evidence.margin", values, "ar") == "هامش المكافأة: \u200e-0.5 (مجال الثقة 95%: من \u200e-2 إلى 1)"
    assert worded("evidence.margin", values) == "reward margin: -0.5 (95% interval: -2 to 1)"
