"""The command line against a service that listens: what it prints, as text and as JSON, and how it ends."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from jobs.repository import jobs, metrics, tasks
from jobs.settings import Settings
from jobs.spec import SPECS
from jobs.states import TaskKind
from tafdil.cli import app
from tests.browser.seed import EVIDENCE
from tests.conftest import DATA
from tests.integration.test_client import HOSTILE, artifact, claimed, finished
from tests.live import Live, live, serving, settings
from tests.training import config
from trainer_core.comparison import Proof
from trainer_core.config import METHODS, SETTINGS
from trainer_core.dry_run import dry_run
from trainer_core.errors import error_dict

ROWS = str(DATA / "pairs_train.jsonl")


__all__ = ["live", "settings"]


def run(live: Live | None, *arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    url = ["--url", live.url if live else "http://127.0.0.1:9"]
    result = CliRunner().invoke(app, [*url, *arguments], input=stdin, env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    assert "Traceback" not in result.output + result.stderr
    return result


def submitted(live: Live, *more: str) -> str:
    options = ["--method", "ipo", "--model", "tafdil/tiny-arabic-qwen-2", "--data", "samples/pairs_train.jsonl"]
    return json.loads(run(live, "submit", *options, *more, "--json").stdout)["id"]


def answer_dry_run(live: Live, said: dict[str, Any]) -> None:
    """Answers the next dry run that is asked for, as its worker would."""
    for _ in range(5000):
        with live.database.transaction() as session:
            task = tasks.claim_next(session, [TaskKind.VALIDATE], 60)
            if task:
                tasks.finish(session, task, {**said, "spec": task.request["spec"]})
                return
        threading.Event().wait(0.05)


def test_methods_and_their_fields_are_listed(live: Live) -> None:
    listed = run(live, "methods").output
    for each in SETTINGS:
        assert each.title in listed
        assert f"arXiv:{each.paper}" in listed
        name = each.method_name
        shown = run(live, "methods", each.title).output
        assert each.full_name in shown
        for field in SPECS[name].model_fields:
            assert re.search(rf"^ *{field}\b", shown, re.MULTILINE), field
        assert "tokens" in shown
        assert [field["name"] for field in json.loads(run(live, "methods", name, "--json").output)["fields"]] == list(
            SPECS[name].model_fields
        )
    assert [method["name"] for method in json.loads(run(live, "methods", "--json").output)] == list(METHODS)
    refused = run(live, "methods", "nope", code=4)
    assert all(method in refused.stderr for method in METHODS)


def test_a_spec_file_may_list_several_datasets(live: Live, tmp_path: Path, spec: dict[str, Any]) -> None:
    del spec["dataset_path"]
    datasets = [{"dataset_path": f"samples/pairs_{part}.jsonl", "weight": 1} for part in ("train", "held_out")]
    as_json, as_toml = tmp_path / "spec.json", tmp_path / "spec.toml"
    as_json.write_text(json.dumps({**spec, "datasets": datasets}), encoding="utf-8")
    lists = "".join(f'[[datasets]]\ndataset_path = "{each["dataset_path"]}"\nweight = 1\n' for each in datasets)
    as_toml.write_text(f'method = "ipo"\nmodel_name = "{spec["model_name"]}"\n{lists}', encoding="utf-8")
    names = [each["dataset_path"] for each in datasets]
    for path in (as_json, as_toml):
        job = json.loads(run(live, "submit", str(path), "--json").stdout)
        assert [(each["name"], each["weight"]) for each in job["spec"]["datasets"]] == [(name, 1.0) for name in names]
    said = dry_run(config("ipo", tmp_path))
    said["data"]["datasets"] = [{"name": "formal", "rows_in_file": 640, "rows_taken": 414, "rows_trained_on": 400}]
    answering = threading.Thread(target=answer_dry_run, args=(live, said))
    answering.start()
    assert ": 414 of its 640 rows\n" in run(live, "submit", str(as_json), "--dry-run").stdout
    answering.join()


def test_a_job_is_submitted_from_files_and_options(live: Live, tmp_path: Path, spec: dict[str, Any]) -> None:
    as_json, as_toml = tmp_path / "spec.json", tmp_path / "spec.toml"
    as_json.write_text(json.dumps(spec), encoding="utf-8")
    as_toml.write_text('method = "cpo"\nmodel_name = "tafdil/tiny-arabic-qwen-2"\nbeta = 0.2\n', encoding="utf-8")
    first = json.loads(run(live, "submit", str(as_json), "--set", "max_steps=7", "--name", "أول", "--json").stdout)
    assert (first["spec"]["max_steps"], first["spec"]["learning_rate"], first["name"]) == (7, 1e-3, "أول")
    second = json.loads(run(live, "submit", str(as_toml), "--data", ROWS, "--eval", ROWS, "--json").stdout)
    assert (second["method"], second["spec"]["beta"]) == ("cpo", 0.2)
    assert second["spec"]["dataset_id"] == second["spec"]["eval_dataset_id"], "the same bytes are uploaded once"
    third = run(live, "submit", "-", stdin=json.dumps(spec))
    assert "queued, number 3" in third.stdout
    assert f"tafdil watch {third.stdout[:8]}" in third.stdout
    # The same bytes are not uploaded again, so that a key stands for the same request.
    keyed = ["submit", str(as_toml), "--data", ROWS, "--idempotency-key", "data", "--json"]
    assert json.loads(run(live, *keyed).stdout)["id"] == json.loads(run(live, *keyed).stdout)["id"]
    again = [run(live, "submit", str(as_json), "--idempotency-key", "k").stdout[:32] for _ in range(2)]
    assert again[0] == again[1]
    null = json.loads(run(live, "submit", str(as_json), "--set", "learning_rate_cap=null", "--json").stdout)
    assert null["spec"]["learning_rate_cap"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit", "absent.json"], 2, "there is no file absent.json"),
        (["submit", "--set", "beta"], 2, "name=value"),
        (["submit", "--method", "ipo"], 3, "model_name"),
        (["submit", "--method", "ppo", "--model", "m", "--data", "x"], 3, "kto, ipo, cpo"),
        (["show", "0" * 32], 4, "no job has the id"),
        (["show", "nothing"], 4, "tafdil list"),
        (["show", "last"], 4, "there is no job yet"),
        (["list", "--state", "gone"], 3, "state"),
        (["data", "upload", "absent.jsonl"], 2, "there is no file"),
        (["data", "show", "0" * 32], 4, "no dataset has the id"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_what_is_wrong_is_said_with_its_code(live: Live, arguments: list[str], code: int, said: str) -> None:
    result = run(live, *arguments, code=code)
    assert said in result.stderr.replace("\n", " ")
    if code != 2:
        told = json.loads(run(live, *arguments, "--json", code=code).stderr)["error"]
        assert told["exit_code"] == code
        assert told["message"]


def test_a_service_that_is_away_is_said(live: Live) -> None:
    assert "tafdil serve" in run(None, "list", code=8).stderr
    job_id = submitted(live)
    assert "cannot be resumed" in run(live, "resume", job_id, code=5).stderr


def test_jobs_are_listed_and_shown(live: Live) -> None:
    assert run(live, "list").stdout.strip() == "There are no jobs yet."
    job_id = submitted(live, "--name", HOSTILE.replace("\x00", ""))
    other = submitted(live, "--name", "ثان")
    listed = run(live, "list").stdout
    assert job_id in listed
    assert "\\u202e" in listed
    assert "\x1b[31m" not in listed
    assert " ثان " in listed
    assert [job["id"] for job in json.loads(run(live, "list", "--limit", "1", "--json").stdout)] == [other]
    for name in (job_id, job_id[:9], "last", "ثان"):
        found = json.loads(run(live, "show", name, "--json").stdout)
        assert found["id"] == (other if name in ("last", "ثان") else job_id)
        assert found["attempts"] == []
    assert "queued, number 1" in run(live, "show", job_id).stdout
    assert json.loads(run(live, "show", job_id, "--spec").stdout)["lora_r"] == 16
    for action, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert json.loads(run(live, action, job_id, "--json").stdout)["state"] == state
    assert json.loads(run(live, "rerun", job_id, "--json").stdout)["rerun_of"] == job_id
    assert json.loads(run(live, "clone", job_id, "--set", "beta=0.3", "--json").stdout)["spec"]["beta"] == 0.3


def test_a_table_that_goes_into_a_pipe_is_whole(live: Live) -> None:
    submitted(live, "--name", "a long name " * 16)
    command = [sys.executable, "-m", "tafdil.cli", "--url", live.url, "list"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    printed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment).stdout
    assert ("a long name " * 16).strip() in printed


def test_a_job_is_watched_to_its_end(live: Live) -> None:
    job_id = submitted(live)
    fence = claimed(live)
    with live.database.transaction() as session:
        metrics.add(session, job_id, 1, 1, {"loss": 0.75, "rewards/margins": None})
        metrics.add(session, job_id, 1, 2, {"loss": 0.25})
        jobs.set_progress(session, fence, 2, 4, 3.0)
        jobs.add_warning(session, fence, {"code": "x", "message": "تحذير"})
    timer = threading.Timer(0.5, finished, (live, fence))
    timer.start()
    shown = run(live, "watch", job_id).stdout
    timer.join()
    assert "preparing, step 2 of 4" in shown
    assert "تحذير" in shown
    assert "0.75" in shown
    assert "0.25" in shown
    assert "tafdil compare" in shown
    lines = [json.loads(line) for line in run(live, "watch", job_id, "--json").stdout.splitlines()]
    assert lines[-1]["state"] == "succeeded"
    assert run(live, "metrics", job_id).stdout.splitlines() == [
        "name,attempt,step,value",
        "loss,1,1,0.75",
        "loss,1,2,0.25",
        "rewards/margins,1,1,",
    ]
    failed = submitted(live)
    run(live, "cancel", failed)
    assert "cancelled" in run(live, "watch", failed, code=1).stderr


def test_the_effect_of_a_run_is_listed_shown_and_watched(live: Live) -> None:
    job_id = submitted(live)
    evidence = {**EVIDENCE, "mean_kl": 2e-7, "decided_by": ["mean_kl"]}
    finished(live, claimed(live), effect="hardly_changed", metadata_={"effect_evidence": evidence})
    assert "hardly changed" in run(live, "list").stdout
    shown = run(live, "show", job_id).stdout
    assert "succeeded; the model hardly changed" in shown
    assert "measured on 64 validation rows" in shown
    assert "KL divergence from the model before the run: 2e-07 nats per token" in shown
    assert "reward margin: 2.13 (95% interval: 1.87 to 2.39)" in shown
    assert "3 of 4 differ" in shown
    assert f"see why: tafdil show {job_id[:8]}" in run(live, "watch", job_id).stdout
    other = submitted(live)
    broken = {**evidence, "mean_kl": None, "shift": None, "margin": None, "samples": None}
    broken["decided_by"] = ["mean_kl", "shift"]
    finished(live, claimed(live), effect="collapsed", metadata_={"effect_evidence": broken})
    shown = run(live, "show", other).stdout
    assert "the model broke" in shown
    assert "its log-probabilities are not finite" in shown


def test_a_dry_run_forecasts_the_effect(live: Live, tmp_path: Path) -> None:
    said = dry_run(config("ipo", tmp_path, learning_rate=1e-6))

    options = ["--method", "ipo", "--model", "tafdil/tiny-arabic-qwen-2", "--data", "samples/pairs_train.jsonl", "--dry-run"]
    for more in ([], ["--json"]):
        thread = threading.Thread(target=answer_dry_run, args=(live, said))
        thread.start()
        shown = run(live, "submit", *options, *more).stdout
        thread.join()
        assert ("it will hardly change the model, judging by" in shown) == (not more)
        assert "this run will hardly change the model" in shown
    assert json.loads(shown)["forecast"]["effect"] == "hardly_changed"


def test_logs_are_printed_and_followed(live: Live) -> None:
    from jobs.places import run_dir

    job_id = submitted(live)
    fence = claimed(live)
    log = run_dir(live.settings, job_id) / "attempt-1/log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("سطر\n\x1b[2J\u202e\n", encoding="utf-8")

    def go_on() -> None:
        log.write_text("سطر\n\x1b[2J\u202e\nالنهاية\n", encoding="utf-8")
        finished(live, fence)

    timer = threading.Timer(0.5, go_on)
    timer.start()
    assert run(live, "logs", "-f", job_id).stdout == "سطر\n\\u202e\nالنهاية\n"
    timer.join()
    assert json.loads(run(live, "logs", job_id, "--json").stdout)["text"].startswith("سطر")


def test_a_merge_that_fails_says_why(live: Live) -> None:
    job_id = submitted(live)
    finished(live, claimed(live))

    def fail() -> None:
        for _ in range(5000):
            with live.database.transaction() as session:
                task = tasks.claim_next(session, [TaskKind.MERGE], 60)
                if task:
                    tasks.finish(session, task, None, error_dict("reference_mismatch", "not those weights"))
                    return
            threading.Event().wait(0.05)

    thread = threading.Thread(target=fail)
    thread.start()
    assert "not those weights" in run(live, "merge", job_id, code=3).stderr
    thread.join()


def test_answers_are_compared(live: Live) -> None:
    job_id = submitted(live)
    finished(live, claimed(live))
    proof = Proof("a" * 64, "b" * 64, "c" * 64, 1.5, 0.1, "d" * 64, "function").as_dict()
    result = {"trained_model_response": "الرباط", "reference_model_response": "مراكش", "dtype": "bfloat16", "proof": proof}

    def answer() -> None:
        for _ in range(5000):
            with live.database.transaction() as session:
                task = tasks.claim_next(session, [TaskKind.COMPARE], 60)
                if task:
                    tasks.finish(session, task, result)
                    return
            threading.Event().wait(0.05)

    for arguments in ([], ["--json"]):
        thread = threading.Thread(target=answer)
        thread.start()
        shown = run(live, "compare", job_id, "ما عاصمة المغرب؟", *arguments).stdout
        thread.join()
        assert "الرباط" in shown
        assert "مراكش" in shown
        expected = "aaaaaaaaaaaa and bbbbbbbbbbbb; largest logit difference 1.5, in bfloat16; proof: function"
        assert (expected in shown) == (not arguments)
    assert json.loads(shown)[0]["result"]["proof"]["max_logit_difference"] == 1.5
    assert "not answered in 0 s" in run(live, "compare", job_id, "سؤال", "--wait-s", "0", code=124).stderr


def test_data_is_checked_uploaded_and_shown(live: Live, tmp_path: Path) -> None:
    assert "640 rows" in run(None, "data", "check", ROWS).stdout
    assert json.loads(run(None, "data", "check", ROWS, "--json").stdout)["valid"] is True
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "س", "chosen": "ن"}\n{"prompt": 1}\n', encoding="utf-8")
    said = run(None, "data", "check", str(broken), code=3).stderr
    assert "line 1" in said
    assert "line 2" in said
    assert json.loads(run(None, "data", "check", str(broken), "--json", code=3).stdout)["valid"] is False
    assert "line 1" in run(live, "data", "upload", str(broken), code=3).stderr
    dataset = json.loads(run(live, "data", "upload", ROWS, "--name", "أزواج", "--json").stdout)
    assert dataset["id"] in run(live, "data", "list").stdout
    assert "row 2" in run(live, "data", "show", dataset["id"], "--first", "2", "--count", "1").stdout
    assert json.loads(run(live, "data", "delete", dataset["id"], "--json").stdout)["freed_bytes"] > 0
    assert json.loads(run(live, "data", "list", "--json").stdout) == []


def test_a_question_is_printed_with_the_command_that_answers_it(live: Live, tmp_path: Path) -> None:
    table = tmp_path / "جدول.csv"
    table.write_bytes("السؤال,جواب جيد,جواب سيئ\nما عاصمة مصر؟,القاهرة,لا أدري\n".encode("cp1256"))
    for command, where in (("check", None), ("upload", live)):
        said = run(where, "data", command, str(table), code=3).stderr
        assert "cp1256" in said
        assert "ما عاصمة مصر؟" in said
        answer = shlex.split(said.strip().splitlines()[-1])
        assert answer[-5:] == ["data", command, str(table), "--encoding", "cp1256"]
        assert "prompt is read from" in run(where, *answer[-4 - 1 :]).stdout
    assert json.loads(run(None, "data", "check", str(table), "--json", code=3).stdout)["question"]["guess"] == "cp1256"
    assert (
        json.loads(run(live, "data", "upload", str(table), "--json", code=3).stderr)["error"]["question"]["about"]
        == "encoding"
    )
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text('{"a b": "x", "c": "y", "d": "z"}\n', encoding="utf-8")
    said = run(None, "data", "check", str(unknown), code=3).stderr
    assert "a b" in said
    assert "--map prompt=COLUMN --map chosen=COLUMN --map rejected=COLUMN" in said.replace("\n", " ")
    columns = ["--map", "prompt=a b", "--map", "chosen=c", "--map", "rejected=d"]
    assert "prompt is read from" in run(None, "data", "check", str(unknown), *columns).stdout


def test_a_table_that_was_uploaded_is_known_again(live: Live, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("prompt,chosen,rejected\nس,نعم,لا\n", encoding="utf-8")
    options = ["submit", "--method", "ipo", "--model", "tafdil/tiny-arabic-qwen-2", "--data", str(table), "--json"]
    first, second = (json.loads(run(live, *options).stdout)["spec"]["dataset_id"] for _ in range(2))
    assert first == second


def test_broken_rows_stay_out_and_are_saved(live: Live, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "broken.csv"
    good = '{"prompt": "س", "chosen": "نعم", "rejected": "لا"}\n'
    rows.write_text(good + '{"prompt": "=x", "chosen": 1}\n' + good.replace("س", "ص"), encoding="utf-8")
    assert "skipped 1 invalid row" in run(None, "data", "check", str(rows), "--on-invalid", "skip").stdout
    said = run(live, "data", "upload", str(rows), "--on-invalid", "skip").stdout
    run(live, *said.partition("see them: tafdil ")[2].split()[:3], str(out))
    assert out.read_bytes().startswith(b"\xef\xbb\xbfline,problem,prompt,chosen")
    converted = tmp_path / "ours.jsonl"
    run(None, "data", "convert", str(rows), str(converted), code=3)
    assert not list(tmp_path.glob(".*")), "what failed leaves nothing"
    run(None, "data", "convert", str(rows), str(converted), "--on-invalid", "skip")
    assert "already exists" in run(None, "data", "convert", str(rows), str(converted), code=2).stderr
    assert "2 rows" in run(None, "data", "check", str(converted)).stdout
    assert "field=column" in run(None, "data", "check", str(rows), "--map", "prompt", code=2).stderr


def test_files_are_downloaded_and_deleted(live: Live, tmp_path: Path, spec: dict[str, Any]) -> None:
    from tafdil import Client

    with Client(live.url) as client:
        job_id = artifact(client, live, spec, b"weights")
    assert "model.safetensors" in run(live, "files", job_id).stdout
    assert json.loads(run(live, "files", "last", "--json").stdout)[0]["size_bytes"] == 7
    run(live, "download", job_id, str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"weights"
    damaged = run(live, "download", job_id, str(tmp_path / "other"), "--kind", "log")
    assert "no files of that kind" in damaged.stdout
    run(live, "delete", job_id, code=1, stdin="n\n")
    assert "1 file," in run(live, "delete", job_id, "--kind", "model", "--yes").stdout
    run(live, "delete", job_id, "--job", "--yes")
    run(live, "show", job_id, code=4)


def test_keys_are_made_and_revoked(settings: Settings) -> None:
    admin_key = "an-admin-key-of-more-than-32-letters"
    with serving(settings.model_copy(update={"admin_key": SecretStr(admin_key)})) as live:
        assert "API key" in run(live, "list", code=6).stderr
        key = run(live, "--key", admin_key, "keys", "create", "--tenant", "team", "--scope", "read").stdout.strip()
        assert key.startswith("tafdil_")
        assert json.loads(run(live, "--key", key, "list", "--json").stdout) == []
        assert "write scope" in run(live, "--key", key, "submit", "--method", "ipo", code=6).stderr
        listed = json.loads(run(live, "--key", admin_key, "keys", "list", "--json").stdout)
        run(live, "--key", admin_key, "keys", "revoke", listed[0]["id"])
        run(live, "--key", key, "list", code=6)
        assert "revoked" in run(live, "--key", admin_key, "keys", "list").stdout


def test_the_doctor_looks_at_everything(live: Live, tmp_path: Path) -> None:
    found = json.loads(run(live, "doctor", "--data-dir", str(tmp_path), "--json").stdout)
    by_name = {one["what"]: one for one in found}
    assert by_name["database"]["is_good"] is True
    assert by_name["keys"]["is_good"] is None
    live.queue.is_broken = True
    ill = run(live, "doctor", code=1).stdout
    assert "TAFDIL_REDIS_URL" in ill
    alone = run(None, "doctor").stdout
    assert "tafdil serve" in alone


def test_help_and_completion_are_there() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for name in ("submit", "list", "watch", "logs", "compare", "data", "download", "serve", "demo", "doctor", "keys"):
        assert name in shown
    assert "--install-completion" in shown
    asked = {"_TAFDIL_COMPLETE": "complete_bash", "COMP_WORDS": "tafdil sub", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], env=asked, prog_name="tafdil").output.split() == ["submit"]
