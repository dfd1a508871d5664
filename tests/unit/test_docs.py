"""Documentation that drifts from the code fails here."""

import re
import tomllib
from pathlib import Path

import jobs.errors  # noqa: F401  # its classes are listed
from jobs.settings import Settings
from jobs.states import TRANSITIONS, Cause, JobState, Phase, Request, TaskState
from trainer_core.errors import CODES, TafdilError
from worker.warm_start import ColdReason

ROOT = Path(__file__).resolve().parents[2]


def test_every_setting_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(TAFDIL_\w+)` \| (.*) \|$", page, re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        default = getattr(field.default, "get_secret_value", lambda value=field.default: value)()
        default = ",".join(default) if isinstance(default, list) else default
        shown = "" if default is None else f"`{default}`"
        expected[f"TAFDIL_{name.upper()}"] = f"{shown} | {field.description}"
    assert rows == expected


def test_every_error_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    classes: dict[str, list[str]] = {}

    def collect(kind: type[TafdilError]) -> None:
        for below in kind.__subclasses__():
            if below.__module__ in ("trainer_core.errors", "jobs.errors"):
                classes.setdefault(below.code, []).append(f"`{below.__name__}`")
            collect(below)

    collect(TafdilError)
    expected = [
        (code, ", ".join(classes.get(code, [])), *("yes" if flag else "no" for flag in (e.retryable, e.user_fault)), e.hint)
        for code, e in CODES.items()
    ]
    assert re.findall(r"^\| `(\w+)` \| (.*?) \| (yes|no) \| (yes|no) \| (.*) \|$", page, re.MULTILINE) == expected


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_dependency_is_pinned_and_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[<>=]", requirement)[0] for group in groups for requirement in group}
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert names <= pinned
    reasons = (ROOT / "docs" / "decisions" / "0003-dependencies.md").read_text(encoding="utf-8")
    assert {name for name in names if name not in reasons} == set()


def test_the_readme_names_real_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_state_diagram_is_the_code() -> None:
    page = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    of_jobs, _, of_tasks = page.partition("# States of a task")
    drawn = set(re.findall(r"^    (\w+) --> (\w+) : (\w+)$", of_jobs, re.MULTILINE))
    final = set(re.findall(r"^    (\w+) --> \[\*\]$", of_tasks, re.MULTILINE))
    assert final == {state.value for state in TaskState if state.is_final}
    assert {state.value for state in TaskState} == set(re.findall(r"^    \w+ --> (\w+)", of_tasks, re.MULTILINE)) | final
    coded = {(source.value, to.value, cause.value) for cause, (sources, to) in TRANSITIONS.items() for source in sources}
    assert drawn == coded
    ends = set(re.findall(r"^    (\w+) --> \[\*\]$", page, re.MULTILINE))
    assert ends == {state.value for state in JobState if state.is_final}
    assert re.findall(r"^    \[\*\] --> (\w+) : submitted$", page, re.MULTILINE) == [JobState.QUEUED.value]
    explained = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(explained) == sorted(cause.value for cause in Cause)
    for word in [*Phase, *Request]:
        assert f"`{word.value}`" in page


def test_every_control_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!control|---)(.+?) \| .+ \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) >= 16
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for control, tests in rows:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, control
        assert {name for name in named if f"def {name}(" not in written} == set()


def test_every_reason_of_a_cold_start_is_explained() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").partition("### Cold starts")[2]
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == sorted(reason.value for reason in ColdReason)


def test_every_fault_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "faults").glob("test_*.py"))
    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in written} == set()
