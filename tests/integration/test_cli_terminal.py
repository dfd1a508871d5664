"""What a console does to the command line: its encoding, its width, and whether a person reads it."""

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

import tafdil.demo
from jobs.places import run_dir
from jobs.repository import jobs, metrics, tasks
from jobs.settings import Settings
from jobs.states import TaskKind
from tafdil import Client
from tafdil.cli import app, context, listing, service
from tests.browser.seed import EVIDENCE
from tests.integration.test_client import artifact, claimed, finished
from tests.live import Live, live, serving, settings
from tests.training import config
from trainer_core.comparison import Proof
from trainer_core.dry_run import dry_run

# Arabic, which cp1256 has; é, which cp1252 has; an emoji, which has no byte anywhere.
NAME = "تجربة é 🚀"
ROWS = '{"prompt": "ما عاصمة مصر؟ 🚀", "chosen": "القاهرة é", "rejected": "لا أعرف"}\n' * 2
SPEC = {"method": "ipo", "model_name": "tafdil/tiny-arabic-qwen-2", "dataset_path": "samples/pairs_train.jsonl"}

__all__ = ["live", "settings"]


def run(
    live: Live | None, *arguments: str, encoding: str = "utf-8", codes: Sequence[int] = (0,), stdin: bytes | None = None
) -> Result:
    url = ["--url", live.url if live else "http://127.0.0.1:9"]
    found = CliRunner(charset=encoding).invoke(app, [*url, *arguments], input=stdin, env={"COLUMNS": "200"})
    failure = f"{encoding} {arguments}: {found.stdout}\n{found.stderr}\n{found.exception!r}"
    assert found.exception is None or isinstance(found.exception, SystemExit), failure
    assert found.exit_code in codes, failure
    found.stdout_bytes.decode(encoding)
    found.stderr_bytes.decode(encoding)
    return found


def answers(tmp_path: Path) -> dict[TaskKind, dict[str, Any]]:
    """What workers answer, with letters that few consoles have."""
    said = dry_run(config("ipo", tmp_path, learning_rate=1e-6))
    proof = Proof("a" * 64, "b" * 64, "c" * 64, 1.5, 0.1, "d" * 64, "function").as_dict()
    sides = dict.fromkeys(("trained_model_response", "reference_model_response"), NAME)
    token = {"id": 1, "text": NAME, "trained": True}
    row = {"row": 1, "label": None, "prompt": [token], "answers": {"chosen": [token], "rejected": [token]}}
    return {
        TaskKind.VALIDATE: {**said, "warnings": [{"code": "x", "message": NAME}]},
        TaskKind.COMPARE: {**sides, "dtype": "bfloat16", "proof": proof},
        TaskKind.PREVIEW: {"rows": [row]},
        TaskKind.MERGE: {"size_bytes": 7},
        TaskKind.PUSH: {"url": f"https://hub.example/{NAME}"},
    }


@contextmanager
def workers(live: Live, tmp_path: Path) -> Generator[None]:
    """Answers every task of a service until the block ends."""
    is_over, results = threading.Event(), answers(tmp_path)

    def work() -> None:
        while not is_over.wait(0.02):
            with live.database.transaction() as session:
                task = tasks.claim_next(session, list(TaskKind), 60)
                if task:
                    tasks.finish(session, task, {**results[TaskKind(task.kind)], "spec": task.request.get("spec")})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def queued(live: Live) -> str:
    with Client(live.url) as client:
        return client.submit({**SPEC, "name": NAME}).id


@pytest.fixture
def seeded(settings: Settings, tmp_path: Path) -> Generator[tuple[Live, str, str]]:
    """A service with a job that is over, and a dataset; their ids."""
    rows = tmp_path / "صفوف.jsonl"
    rows.write_text(ROWS, encoding="utf-8")
    with serving(settings.model_copy(update={"hub_namespace": "team"})) as live, Client(live.url) as client:
        dataset = client.upload_dataset(rows, NAME).id
        job = artifact(client, live, {**SPEC, "name": NAME}, b"weights")
        other = client.submit({**SPEC, "name": NAME})
        fence = claimed(live)
        with live.database.transaction() as session:
            metrics.add(session, other.id, 1, 1, {"loss": 0.75})
            jobs.add_warning(session, fence, {"code": "x", "message": NAME})
        log = run_dir(live.settings, other.id) / "attempt-1/log.txt"
        log.parent.mkdir(parents=True)
        log.write_text(f"{NAME}\n", encoding="utf-8")
        finished(live, fence, effect="hardly_changed", metadata_={"effect_evidence": EVIDENCE})
        with workers(live, tmp_path):
            yield live, job, dataset


def every_command(live: Live, job: str, dataset: str, tmp_path: Path) -> list[tuple[list[str], Sequence[int]]]:
    """Command lines of every command but `serve` and `demo`, with the codes that they may end with."""
    spec, rows = tmp_path / "مواصفات.json", tmp_path / "صفوف.jsonl"
    spec.write_text(json.dumps({**SPEC, "name": NAME}, ensure_ascii=False), encoding="utf-8")
    broken = tmp_path / "مكسور.jsonl"
    broken.write_text(f'{{"prompt": "س", "{NAME}": "ن"}}\n', encoding="utf-8")
    fine = (0,)
    change = queued(live)
    return [
        (["list"], fine),
        (["show", "last"], fine),
        (["show", NAME], (2,)),
        (["show", f"{NAME}؟"], (4,)),
        (["watch", job], fine),
        (["logs", "last"], fine),
        (["metrics", "last"], fine),
        (["submit", str(spec)], fine),
        (["submit", str(spec), "--dry-run"], fine),
        (["submit", str(broken)], (3,)),
        (["pause", change], fine),
        (["resume", change], fine),
        (["cancel", change], fine),
        (["rerun", job], fine),
        (["clone", job, "--set", f"name={NAME}"], fine),
        (["compare", job, "ما عاصمة المغرب؟"], fine),
        (["files", job], fine),
        (["download", job, str(tmp_path / NAME)], fine),
        (["merge", job], fine),
        (["push", job, "name"], fine),
        (["delete", change, "--job", "--yes"], fine),
        (["doctor", "--data-dir", str(tmp_path / NAME)], (0, 1)),
        (["data", "check", str(rows)], fine),
        (["data", "check", str(broken)], (3,)),
        (["data", "convert", str(rows), str(tmp_path / f"{NAME} {time.monotonic_ns()}")], fine),
        (["data", "broken", dataset, str(tmp_path / f"{NAME}.csv")], (4,)),
        (["data", "report", str(rows)], fine),
        (["data", "upload", str(rows), "--name", f"{NAME} {time.monotonic_ns()}"], fine),
        (["methods"], fine),
        (["methods", "simpo"], fine),
        (["data", "list"], fine),
        (["data", "show", dataset], fine),
        (["data", "preview", dataset], fine),
        (["data", "delete", "last"], fine),
        (["keys", "create", "--name", NAME], fine),
        (["keys", "list"], fine),
        (["keys", "revoke", "0" * 32], (4,)),
    ]


def commands_of(group: Any, *before: str) -> set[tuple[str, ...]]:
    """Every command below a group, by the words that call it."""
    found: set[tuple[str, ...]] = set()
    for name, one in group.commands.items():
        found |= commands_of(one, *before, name) if hasattr(one, "commands") else {(*before, name)}
    return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask again at once."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.02)))


@pytest.mark.usefixtures("impatient")
def test_every_command_prints_on_every_console(seeded: tuple[Live, str, str], tmp_path: Path) -> None:
    live, job, dataset = seeded
    called: set[tuple[str, ...]] = {("serve",), ("demo",)}
    for arguments, codes in every_command(live, job, dataset, tmp_path):
        called.add(tuple(arguments[: 2 if arguments[0] in ("data", "keys") else 1]))
        run(live, *arguments, encoding="ascii", codes=codes)
    assert called == commands_of(typer.main.get_command(app))
    for arguments, codes in every_command(live, job, dataset, tmp_path):
        shown = run(live, *arguments, "--json", encoding="cp1252", codes=codes)
        text = shown.stdout_bytes or shown.stderr_bytes
        assert text.isascii()
        for document in text.splitlines() if arguments[0] in ("watch", "logs") else [text]:
            json.loads(document)
    for encoding, letters in (("cp437", "\\u062a\\u062c"), ("cp1256", "تجربة é \\U0001f680"), ("utf-8", NAME)):
        for arguments in (["list"], ["data", "show", dataset]):
            assert letters in run(live, *arguments, encoding=encoding).stdout.replace("\\xe9", "é")
    assert NAME in run(live, "list", "--json").stdout
    assert json.loads(run(live, "list", "--json", encoding="utf-16").stdout)[0]["name"] == NAME


@pytest.mark.parametrize("encoding", ["ascii", "cp1256", "utf-8"])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_the_stack_prints_on_every_console(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str, as_json: list[str]
) -> None:
    class Stack:
        url, data_dir, has_keys = "http://127.0.0.1:9", tmp_path / NAME, False

        def __init__(self, *_: Any, say: Any, **__: Any) -> None:
            say(NAME)

        def __enter__(self) -> "Stack":
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing runs."""

        def watch(self) -> None:
            raise service._Ended("SIGINT")

    def demo(_: Client, console: Console, __: Any) -> list[dict[str, Any]]:
        console.print(NAME)
        return [{"answer": NAME}]

    monkeypatch.setattr(service, "LocalStack", Stack)
    monkeypatch.setattr(service, "_ending_on_signals", nullcontext)
    monkeypatch.setattr(tafdil.demo, "run", demo)
    for name in ("serve", "demo"):
        shown = run(None, name, *as_json, encoding=encoding)
        if as_json:
            assert NAME in json.dumps(json.loads(shown.stdout), ensure_ascii=False)
    assert "Traceback" not in shown.stderr


def test_a_process_prints_in_the_encoding_of_its_console(live: Live) -> None:
    job_id = queued(live)
    command = [sys.executable, "-m", "tafdil.cli", "--url", live.url, "list"]
    bare = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for more, letters in (({"PYTHONIOENCODING": "cp1256"}, "تجربة".encode("cp1256")), (bare, b"\\u062a\\u062c")):
        printed = subprocess.run(command, capture_output=True, timeout=300, check=True, env={**os.environ, **more}).stdout
        assert job_id.encode() in printed
        assert letters in printed


def test_what_is_no_text_is_refused(live: Live, tmp_path: Path) -> None:
    assert "\\udcff, which is not valid text" in run(live, "submit", "--model", "\udcff", codes=[2]).stderr
    half = tmp_path / "half.json"
    half.write_text('{"method": "ipo", "model_name": "\\ud800"}')
    assert "not valid text" in run(live, "submit", str(half), codes=[2]).stderr
    assert "ASCII" in run(live, "--key", "مفتاح", "list", codes=[2]).stderr
    assert json.loads(run(live, "data", "check", "\udcff.jsonl", "--json", codes=[3]).stdout)["valid"] is False
    job_id = queued(live)
    run(live, "delete", job_id, encoding="ascii", stdin=b"\xff\n" * 9 + b"n\n", codes=[1])


# -- directions


def on_a_terminal(live: Live, *arguments: str, encoding: str = "utf-8", monkeypatch: pytest.MonkeyPatch) -> str:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding=encoding) as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        app(["--url", live.url, *arguments], standalone_mode=False)
        terminal.flush()
        shown = b""
        # A busy machine hands a terminal's text over in pieces.
        while select.select([ours], [], [], 0.5)[0]:
            shown += os.read(ours, 2**16)
    os.close(ours)
    return shown.decode(encoding)


def test_directions_are_marked_for_people_alone(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    queued(live)
    monkeypatch.setenv("FORCE_COLOR", "1")
    for arguments in (["list"], ["show", "last"]):
        shown = on_a_terminal(live, *arguments, monkeypatch=monkeypatch)
        assert f"\u2068{NAME}\u2069" in shown
        assert shown.count("\u2068") == 1, "plain ASCII needs no mark"
        piped = run(live, *arguments).stdout
        assert NAME in piped
        assert "\u2068" not in piped
        assert "2068" not in on_a_terminal(live, *arguments, encoding="cp1256", monkeypatch=monkeypatch)


# -- widths


def test_ids_are_whole_at_every_width(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS, encoding="utf-8")
    long = "اسم طويل " * 20
    with Client(live.url) as client:
        dataset = client.upload_dataset(rows, long.strip()).id
        job = artifact(client, live, {**SPEC, "name": long.strip()}, b"weights")
    expected = (("list", job), ("data list", dataset), (f"files {job}", "attempt-1/output/model.safetensors"))
    for width in (20, 40, 80, 120, 200):
        monkeypatch.setattr(context.console, "width", width)
        for command, whole in expected:
            shown = run(live, *command.split()).stdout
            assert whole in shown, (width, command)
            assert "…" not in shown
            if not command.startswith("files"):
                assert " ".join(shown.split()).count("طويل") == 20, "nothing of a name is cut"
            for line in shown.splitlines() if width > 20 else ():
                assert len(line) <= width or whole in line or line.count("طويل") > 10


def test_each_line_of_a_wrapped_cell_is_set_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(context.console, "width", 30)
    monkeypatch.setattr(listing, "told", lambda text: f"\u2068{text}\u2069")
    listing.show_listing([listing.Column("id", is_whole=True), listing.Column("name")], [("0123456789", "كلمة " * 5)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    for line in lines[1:]:
        assert line.count("\u2068") == line.count("\u2069")
        assert "كلمة" in line


# -- names


def test_a_dataset_is_named_as_a_job_is(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS, encoding="utf-8")
    assert "there is no dataset yet" in run(live, "data", "show", "last", codes=[4]).stderr
    with Client(live.url) as client:
        first = client.upload_dataset(rows, "آية").id
        same = [client.upload_dataset(rows, "twice").id for _ in range(2)]
        newest = client.upload_dataset(rows, "samples").id
    for name, meant in ((first, first), (first[:9], first), ("آية", first), ("ا\u0653ية", first), ("last", newest)):
        assert run(live, "data", "show", name).stdout.startswith(meant)
        command = ["submit", "--method", "ipo", "--model", SPEC["model_name"], "--data", name, "--eval", name, "--json"]
        spec = json.loads(run(live, *command).stdout)["spec"]
        assert (spec["dataset_id"], spec["eval_dataset_id"]) == (meant, meant)
        spec = json.loads(run(live, "clone", "last", "--set", f"dataset_id={name}", "--json").stdout)["spec"]
        assert spec["dataset_id"] == meant
    refused = run(live, "data", "delete", "twice", codes=[2]).stderr
    assert all(one in refused for one in same)
    assert "use one of these ids" in refused
    assert all(one in run(live, "submit", "--data", "twice", codes=[2]).stderr for one in same)
    assert "tafdil data list" in run(live, "data", "show", "nothing", codes=[4]).stderr
    assert "tafdil data list" in run(live, "submit", "--set", "dataset_id=nothing", codes=[4]).stderr
    command = ["submit", "--method", "ipo", "--model", SPEC["model_name"], "--data", SPEC["dataset_path"], "--json"]
    assert json.loads(run(live, *command).stdout)["spec"]["dataset_path"] == SPEC["dataset_path"]
    rows.rename(tmp_path / "samples")
    command[-2] = "samples"
    assert json.loads(run(live, *command).stdout)["spec"]["dataset_id"] in (first, *same, newest), "a file here comes first"


def test_a_name_that_fits_several_jobs_is_refused(live: Live) -> None:
    ids = [queued(live) for _ in range(12)]
    refused = run(live, "cancel", NAME, codes=[2])
    assert sum(one in refused.stderr for one in ids) == 10
    assert "and 2 more: tafdil list" in refused.stderr
    assert NAME in refused.stderr
    assert {job["state"] for job in json.loads(run(live, "list", "--json").stdout)} == {"queued"}


def test_a_task_is_cancelled_by_its_id(live: Live, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS, encoding="utf-8")
    with Client(live.url) as client:
        waiting = client.report(client.upload_dataset(rows).id, wait_s=0)
        assert run(live, "cancel", waiting.id).stdout == f"{waiting.id}  the data report is cancelled\n"
        assert client.task(waiting.id).state == "cancelled"
    again = run(live, "cancel", waiting.id, codes=[5]).stderr
    assert "was cancelled already" in again
    assert "no job has the id" in run(live, "cancel", "0" * 32, codes=[4]).stderr
