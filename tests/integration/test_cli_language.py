"""The language of the command line: which one it is, and that everything it says by itself is in it."""

import io
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from typer.testing import CliRunner, Result

from jobs.records import JobRecord
from jobs.repository import jobs
from jobs.settings import Settings
from jobs.states import Cause, Phase
from tafdil.cli import app, context, words
from tests.browser.seed import EVIDENCE
from tests.integration.test_cli import answer_dry_run, submitted
from tests.integration.test_client import claimed, finished
from tests.live import Live, live, serving, settings
from tests.training import config
from trainer_core.dry_run import dry_run
from trainer_core.errors import error_dict
from trainer_core.wording import Message, catalogue, said, say, worded

__all__ = ["live", "settings"]
ARABIC = {"TAFDIL_LANG": "ar"}
_UNSET = dict.fromkeys(("TAFDIL_LANG", "LC_ALL", "LC_MESSAGES", "LANG", "TAFDIL_API_KEY"))


def run(url: str, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None) -> Result:
    variables: dict[str, str | None] = {**_UNSET, "COLUMNS": "200", **(env or {})}
    result = CliRunner().invoke(app, ["--url", url, *arguments], env=variables)
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    return result


def english(text: str) -> list[str]:
    """Phrases of plain Latin words, as no name, option or command has them."""
    commands = r"`[^`]*`|tafdil [a-z]+( [a-z]+)*|pip install [^\n]*"
    return re.findall(r"\b[A-Za-z][a-z]+ [a-z]+ [a-z]+\b", re.sub(commands, "", text))


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_of_a_run_has_words(live: Live, phase: Phase) -> None:
    job = submitted(live)
    claimed(live)
    with live.database.transaction() as session:
        session.execute(update(JobRecord).where(JobRecord.id == job).values(phase=phase))
    (state,) = (line for line in run(live.url, "show", job, env=ARABIC).stdout.splitlines() if line.startswith("     state"))
    assert re.findall("[A-Za-z]+", state) == ["state"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ar_EG.UTF-8"}, "ar"),
        ({"LANG": "ar"}, "ar"),
        ({"LANG": "arn_CL.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LC_MESSAGES": "ar_SA", "LANG": "en_US.UTF-8"}, "ar"),
        ({"LC_ALL": "C", "LC_MESSAGES": "ar_SA", "LANG": "ar_SA"}, "en"),
        ({"LC_ALL": "", "LANG": "ar_MA.UTF-8"}, "ar"),
        ({"TAFDIL_LANG": "en", "LANG": "ar_EG.UTF-8"}, "en"),
        ({"TAFDIL_LANG": "ar", "LC_ALL": "en_US.UTF-8"}, "ar"),
        ({"TAFDIL_LANG": "AR"}, "ar"),
    ],
)
def test_the_environment_chooses_the_language(live: Live, environment: dict[str, str], expected: str) -> None:
    stderr = run(live.url, "show", "last", code=4, env=environment).stderr
    assert stderr.startswith({"en": "error: there is no job yet", "ar": "خطأ: لا توجد أي مهمة بعد"}[expected])


@pytest.mark.parametrize(("environment", "said"), [({}, "must be one of: en, ar"), ({"LANG": "ar_EG"}, "إحدى القيم")])
def test_an_unknown_language_is_refused_by_name(live: Live, environment: dict[str, str], said: str) -> None:
    stderr = run(live.url, "list", code=2, env={**environment, "TAFDIL_LANG": "fr"}).stderr
    assert said in stderr
    assert "fr" in stderr
    assert "TAFDIL_LANG" in stderr


FAILURES = [
    (["submit", "absent.json"], 2),
    (["submit", "broken.json"], 2),
    (["submit", "broken.toml"], 2),
    (["submit", "list.json"], 2),
    (["submit", "latin.json"], 2),
    (["submit", "--set", "beta"], 2),
    (["submit", "--method", "ipo"], 3),
    (["submit", "--method", "ppo", "--model", "m", "--data", "x"], 3),
    (["submit", "--method", "ipo", "--model", "m", "--data", "samples/pairs_train.jsonl", "--set", "beta=-1"], 3),
    (["show", "0" * 32], 4),
    (["show", "nothing"], 4),
    (["list", "--state", "gone"], 3),
    (["methods", "nope"], 4),
    (["data", "upload", "absent.jsonl"], 2),
    (["data", "upload", "broken.jsonl"], 3),
    (["data", "check", "broken.jsonl"], 3),
    (["data", "check", "empty.csv"], 3),
    (["data", "check", "columns.csv"], 3),
    (["data", "check", "rows.jsonl", "--map", "prompt"], 2),
    (["data", "check", "rows.jsonl", "--sheet", "x"], 3),
    (["data", "convert", "rows.jsonl", "rows.jsonl"], 2),
    (["data", "show", "nothing"], 4),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that are wrong in several ways, in the current directory."""
    row = {"prompt": "سؤال", "chosen": "نعم", "rejected": "لا"}
    files: dict[str, bytes] = {
        "broken.json": b'{"method": ',
        "broken.toml": b"method = ",
        "list.json": b"[]",
        "latin.json": b'{"name": "\xe9"}',
        "broken.jsonl": json.dumps(row).encode() + b'\n{"prompt": 1}\n{"prompt": \n',
        "empty.csv": b"",
        "columns.csv": "رقم,سؤال,نص أ,نص ب\n1,2,3,4\n".encode(),
        "rows.jsonl": json.dumps(row).encode() + b"\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code"), FAILURES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_is_wrong_is_said_in_arabic(live: Live, arguments: list[str], code: int) -> None:
    result = run(live.url, *arguments, code=code, env=ARABIC)
    shown = result.stdout + result.stderr
    assert re.search(r"^خطأ: .*[\u0621-\u064a]", result.stderr)
    # The words of a JSON or TOML parser are quoted as they are.
    quoted = arguments[-1] in ("broken.json", "broken.toml")
    assert quoted or english(shown) == []
    # A program or a file gets no marks of direction, and nothing is escaped that was written here.
    assert not re.search(r"[\u2066-\u2069]|\\u20", shown)
    # English is what comes without a language.
    assert not re.search(r"خطأ", run(live.url, *arguments, code=code).stderr)


def test_a_key_that_is_missing_or_refused_is_said_for_people_at_a_terminal(settings: Settings) -> None:
    kept = settings.model_copy(update={"admin_key": SecretStr("an-admin-key-of-more-than-32-letters")})
    with serving(kept) as live:
        for environment in ({}, {"TAFDIL_API_KEY": "tafdil_of-nobody"}):
            for language in ("en", "ar"):
                stderr = run(live.url, "list", code=6, env={"TAFDIL_LANG": language, **environment}).stderr
                assert "TAFDIL_API_KEY" in stderr
                assert "Bearer" not in stderr
                assert ("خطأ" in stderr) == (language == "ar")
        assert "ASCII" in run(live.url, "list", code=2, env={"TAFDIL_API_KEY": "مفتاح", **ARABIC}).stderr


def test_a_service_that_is_away_is_said_in_both_languages() -> None:
    away = "http://127.0.0.1:9"
    assert "error: no response from http://127.0.0.1:9: " in run(away, "list", code=8).stderr
    stderr = run(away, "list", code=8, env=ARABIC).stderr
    assert "خطأ: لا تستجيب الخدمة على http://127.0.0.1:9: " in stderr
    assert "`tafdil serve`" in stderr


def test_a_dry_run_and_its_warnings_are_in_arabic(live: Live, tmp_path: Path) -> None:
    found = dry_run(config("ipo", tmp_path, learning_rate=1e-6))
    found["warnings"] = [
        {"code": "learning_rate_clamped", **said(say("learning_rate_clamped", asked=1e-3, cap=1e-6, used=1e-6))}
    ]
    thread = threading.Thread(target=answer_dry_run, args=(live, json.loads(json.dumps(found))))
    thread.start()
    options = ["--method", "ipo", "--model", "tafdil/tiny-arabic-qwen-2", "--data", "samples/pairs_train.jsonl"]
    shown = run(live.url, "submit", *options, "--dry-run", env=ARABIC).stdout
    thread.join()
    assert "لم تدخل أي مهمة الطابور." in shown
    assert "تحذير: " in shown
    # What an estimate rests on is a name that the service gives.
    assert english(re.sub(r"بحسب .*", "", shown)) == []


def test_a_job_is_submitted_watched_and_shown_in_arabic(live: Live) -> None:
    job_id = submitted(live)
    fence = claimed(live)
    warning = {"code": "learning_rate_clamped", **said(say("learning_rate_clamped", asked=1e-3, cap=5e-7, used=5e-7))}
    error = error_dict("model_refused", say("model_no_weights", model="تجربة/x"))
    with live.database.transaction() as session:
        jobs.add_warning(session, fence, warning)
        assert jobs.finish(session, fence, Cause.FAIL, {"error": error}, reason=say("host_killed_run"))
    watched = run(live.url, "watch", job_id, code=1, env=ARABIC)
    assert "تحذير: " in watched.stdout
    assert f"خطأ: المهمة {job_id}: فشلت المهمة: " in watched.stderr
    shown = run(live.url, "show", job_id, env=ARABIC).stdout
    assert english(watched.output + shown) == []
    for found in (watched.stdout, shown):
        assert "فشلت المهمة: ليس للنموذج «تجربة/x» أوزان" in found
    assert "failed: the model “تجربة/x” has no safetensors weights" in run(live.url, "watch", job_id, code=1).stdout


def test_the_evidence_of_an_effect_and_what_a_job_waits_for_are_in_arabic(live: Live) -> None:
    job = submitted(live)
    evidence = {**EVIDENCE, "margin": {"mean": -0.5, "low": -1.25, "high": 0.25}}
    finished(live, claimed(live), effect="changed", metadata_={"effect_evidence": evidence})
    shown = run(live.url, "show", job, env=ARABIC).stdout
    assert english(shown.replace("min ago", "")) == []
    assert "هامش المكافأة: -0.5 (مجال الثقة 95%: من -1.25 إلى 0.25)" in shown
    waiting = submitted(live)
    live.queue.is_broken = True
    assert worded("cli.waiting.broker", {}, "ar") in run(live.url, "show", waiting, env=ARABIC).stdout


def test_an_interrupted_watch_says_that_the_job_goes_on(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = submitted(live)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("tafdil.client.Client.watch", interrupted)
    assert "The job is not affected" in run(live.url, "watch", job_id, code=130).stderr
    stderr = run(live.url, "watch", job_id, code=130, env=ARABIC).stderr
    assert "لم تتأثر المهمة" in stderr
    assert f"tafdil watch {job_id[:8]}" in stderr


def test_the_doctor_advises_in_arabic(live: Live, tmp_path: Path) -> None:
    shown = run(live.url, "doctor", "--data-dir", str(tmp_path), env=ARABIC).stdout
    assert "تستجيب الخدمة على" in shown
    found = json.loads(run(live.url, "doctor", "--data-dir", str(tmp_path), "--json", env=ARABIC).stdout)
    assert any("المساحة المتاحة" in each["told"] for each in found)
    assert not re.search(r"[\u2066-\u2069]", json.dumps(found, ensure_ascii=False))


def test_errors_as_json_have_their_code_in_every_language(live: Live) -> None:
    by_language = {
        language: json.loads(run(live.url, "show", "0" * 32, "--json", code=4, env={"TAFDIL_LANG": language}).stderr)[
            "error"
        ]
        for language in ("en", "ar")
    }
    assert by_language["en"]["code"] == by_language["ar"]["code"] == "not_found"
    assert by_language["en"]["message"] != by_language["ar"]["message"]


class _Terminal(io.StringIO):
    encoding = "utf-8"  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("code", [code for code in catalogue("en") if code.startswith("cli.")])
def test_every_sentence_is_safe_on_a_terminal_and_plain_in_a_pipe(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Values cannot move the cursor or reorder the sentence; only a terminal gets marks, and they are balanced."""
    text = catalogue("en")[code]
    forms = [text] if isinstance(text, str) else list(text.values())
    names = {name for form in forms for name in re.findall(r"{(\w+)}", form)} | {"n"}
    hostile = "تجربة\u202e\x1b[31m"
    values: list[Any] = [hostile, [hostile, hostile], say("cli.error", message=hostile)]
    for language in ("en", "ar"):
        monkeypatch.setenv("TAFDIL_LANG", language)
        for value in values:
            message = Message(code, {name: 3 if name == "n" else value for name in names})
            piped, shown = (words.in_words(message, stream) for stream in (io.StringIO(), _Terminal()))
            for found in (piped, shown):
                assert "\u202e" not in found
                assert "\x1b" not in found
            assert not re.search("[\u2066-\u2069]", piped)
            assert shown.count("\u2068") == shown.count("\u2069")
            assert bool(shown.count("\u2068")) == (names != {"n"})
    assert context.plain(say("cli.no_jobs"))
