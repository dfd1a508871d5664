"""What a method is stands in `trainer_core/config` and `trainer_core/methods`; nothing else asks for it by name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.method_scan import Finding, in_javascript, in_python

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("api", "benchmarks", "examples", "jobs", "tafdil", "tests", "trainer_core", "worker")
HOMES = ("trainer_core/config/", "trainer_core/methods/", "tests/methods/")
# By file, why it may. A file that no longer needs it must leave.
EXCEPTIONS = {
    "tests/integration/test_loss_options.py": "it drives TRL's own trainers, which have no facts",
}


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of every script and module of ours outside the packages that define methods."""
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in (".py", ".js") and "/vendor/" not in name and not name.startswith(HOMES):
                yield name, path.read_text(encoding="utf-8")


def found_in(name: str, text: str) -> list[Finding]:
    return in_javascript(text) if name.endswith(".js") else in_python(text)


def test_nothing_else_asks_which_method_it_is_or_lists_them() -> None:
    read = dict(sources())
    assert len(read) > 300
    assert {"api/dashboard/static/pages/new_job.js", "benchmarks/gpu/sides.py", "examples/arabic_corpus.py"} <= set(read)
    found = {name: findings for name, text in read.items() if (findings := found_in(name, text))}
    unexpected = [f"{name}:{line}: {what}" for name in found if name not in EXCEPTIONS for line, what in found[name]]
    assert not unexpected, "take it from trainer_core.config:\n" + "\n".join(unexpected)
    assert set(EXCEPTIONS) - set(found) == set(), "these need no exception any more"


@pytest.mark.parametrize(
    "planted",
    [
        'if job.method == "kto":\n    pass',
        'rows = "labels" if "kto" == method else "pairs"',
        'is_free = method != "cpo"',
        'if method in ("ipo", x):\n    pass',
        'found = [each for each in jobs if each.method == "ipo"]',
        'match method:\n    case "kto":\n        pass',
        'match method:\n    case "kto" | "x":\n        pass',
        'assert rate == (1e-6 if method == "kto" else 5e-7)',
        'assert method != "cpo" or score is None',
        "if isinstance(settings, KTOSettings):\n    pass",
        "if isinstance(settings, (config.CPOConfig, Other)):\n    pass",
        "if type(settings) is KTOSettings:\n    pass",
        "if settings.__class__ == config.CPOConfig:\n    pass",
        "match settings:\n    case IPOSettings():\n        pass",
        "if isinstance(method, KTO):\n    pass",
        "if name == KTOSettings.method_name:\n    pass",
        'if name.startswith("kto"):\n    pass',
        'if name in frozenset({"kto"}):\n    pass',
        'if name in {"kto": 1}:\n    pass',
        'rate = {"kto": 1e-6}.get(name, 5e-7)',
        'RATES = dict([("kto", 1e-6), ("ipo", 5e-7)])',
        "rates = Rates(kto=1e-6, ipo=5e-7)",
        "RATES = {KTOSettings.method_name: 1e-6, IPOSettings.method_name: 5e-7}",
        'RATES = {"kto": 1e-6, "ipo": 5e-7}',
        'CONFIGS = {"a": KTOConfig, "b": IPOConfig}',
        "rates = dict(kto=1e-6, ipo=5e-7)",
        'METHODS = ("kto", "ipo")',
        'METHODS = ["kto", "ipo", "cpo"]',
        'TITLES = {"KTO", "IPO"}',
        'Method = Literal["kto", "ipo"]',
        "Config = KTOConfig | IPOConfig",
        "Config = Union[KTOConfig, IPOConfig]",
        '@pytest.mark.parametrize("method", ["kto", "ipo"])\ndef test_it():\n    pass',
        'assert found == {"kto": 1, "ipo": 2}[method]',
    ],
)
def test_a_planted_violation_is_found_in_python(planted: str) -> None:
    assert in_python(planted)


@pytest.mark.parametrize(
    "planted",
    [
        'if (job.method === "kto") go();',
        "const rows = 'kto' !== method ? 1 : 2;",
        'switch (method) { case "ipo": break; }',
        'const METHODS = ["kto", "ipo"];',
        'const SCHEMAS = { kto: "KTOJobSpec", ipo: "IPOJobSpec" };',
        'const all = new Set(["KTO", "CPO"]);',
        'if (["kto"].includes(method)) go();',
        'if (method.startsWith("kto")) go();',
        'if (new Set(["kto", "x"]).has(method)) go();',
        'if (method.match("kto")) go();',
        "if (/kto/.test(method)) go();",
        'const RATES = new Map([["kto", 1], ["ipo", 2]]);',
        'html`<p>${method === "kto" && html`<b>x</b>`}</p>`',
    ],
)
def test_a_planted_violation_is_found_in_javascript(planted: str) -> None:
    assert in_javascript(planted)


@pytest.mark.parametrize(
    "allowed",
    [
        'CASES = [("kto", {"beta": 0.1}), ("ipo", {"label_smoothing": 0.2})]',
        'assert job.method == "ipo"',
        'assert (report.format, report.kind) == ("jsonl", "kto")',
        'assert sorted(methods) == ["cpo", "ipo", "kto"]',
        'trainer = trainer_of("kto", folder)',
        'spec = {"method": "ipo", "beta": 0.5}',
        "from trainer_core import CPOConfig, KTOConfig",
        'if settings.rows == "labels":\n    pass',
    ],
)
def test_data_and_expectations_of_tests_are_no_violation(allowed: str) -> None:
    assert not in_python(allowed)


def test_a_kind_of_rows_in_a_script_is_no_violation() -> None:
    assert not in_javascript('export const LABELLED = "kto"; // like "ipo", "cpo"\nconst kinds = { pairs: 1, kto: 2 };')
