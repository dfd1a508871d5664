"""The command line against a service that listens: what it prints, as text and as JSON, and how it ends."""

import json
import os
import re
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
from tests.workbooks import xlsx
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


def test_a_sheet_and_a_recipe_are_enough(live: Live, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(ROWS).read_text(encoding="utf-8").splitlines()[:60]]
    sheet, labelled = tmp_path / "rows.xlsx", str(DATA / "kto_train.jsonl")
    sheet.write_bytes(xlsx({"S": [["prompt", "chosen", "rejected"], *([*map(row.get, row)] for row in rows)]}))
    job = json.loads(run(live, "submit", str(sheet), "--recipe", "try", "--json").stdout)
    assert (job["method"], job["model_name"]) == ("ipo", "tafdil/tiny-arabic-qwen-2")
    assert (job["recipe"]["name"], job["recipe"]["rows"], job["spec"]["max_steps"]) == ("try", 60, 60)
    told = run(live, "submit", labelled, "--recipe", "careful", "--set", "beta=0.3").stdout
    assert "method kto, model tafdil/tiny-arabic-qwen-2" in told
    assert "recipe  careful, version 2" in run(live, "show", "last").stdout
    said = {**dry_run(config("ipo", tmp_path)), "recipe": job["recipe"]}
    answering = threading.Thread(target=answer_dry_run, args=(live, said))
    answering.start()
    shown = run(live, "submit", str(sheet), "--recipe", "try", "--dry-run").stdout
    answering.join()
    for field in job["recipe"]["fields"]:
        assert f"{field['name']} = {json.dumps(field['value'])}: {field['message']}" in " ".join(shown.split())
    assert "give only one of the two" in run(live, "submit", str(sheet), "--data", ROWS, code=2).stderr.lower()
    capped = ["submit", str(sheet), "--recipe", "try", "--set", "learning_rate_cap=1e-6"]
    assert "learning_rate_cap" in run(live, *capped, code=3).stderr


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
    assert "cannot be resumed" in run(live, "resume", job_id, "--max-hours", "2", code=5).stderr


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
    left = [{"trait": "commas", "rows": 40, "margin_left": 0.337}, {"trait": "emoji", "rows": 3, "margin_left": None}]
    review = {"shortcuts": left, "hardest_rows": [{"row": row} for row in (7, "formal.jsonl:2", 3, 4, 5, 6)]}
    recorded = {"effect_evidence": evidence, "review": review}
    finished(live, claimed(live), effect="hardly_changed", metadata_=recorded)
    assert "hardly changed" in run(live, "list").stdout
    shown = run(live, "show", job_id).stdout
    assert "succeeded; the model hardly changed" in shown
    assert "measured on 64 validation rows" in shown
    assert "KL divergence from the original model: 2e-07 nats per token" in shown
    assert "reward margin: 2.13 (95% interval: 1.87 to 2.39)" in shown
    assert "3 of 4 differ" in shown
    assert "without the shortcut “commas”, 34% of the margin remains (measured on 40 pairs)" in shown
    assert "often wrongly labelled: 7, formal.jsonl:2, 3, 4, 5\n" in shown
    assert "emoji" not in shown
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


def test_held_out_prompts_are_counted(live: Live) -> None:
    job_id = submitted(live)
    finished(live, claimed(live))
    sides = {"trained_model_response": "الرباط", "reference_model_response": "مراكش"}
    fair = {"row": 1, "prompt": "ما عاصمة المغرب؟", **sides, "margin": 1.25, "flags": [], "outcome": "better"}
    broken = {**fair, "row": 2, "margin": 9.0, "flags": ["repetition"], "outcome": "broken"}
    counts = {
        "asked": 2,
        "prompts": 2,
        "better": 1,
        "ties": 0,
        "worse": 0,
        "broken": 1,
        "share": 0.5,
        "low": 0.09,
        "high": 0.91,
    }

    def answer() -> None:
        for _ in range(5000):
            with live.database.transaction() as session:
                task = tasks.claim_next(session, [TaskKind.HELD_OUT], 60)
                if task:
                    assert task.request == {"prompts": 2, "max_length": 128}
                    tasks.finish(session, task, {**counts, "answers": [fair, broken]})
                    return
            threading.Event().wait(0.05)

    for arguments in ([], ["--json"]):
        thread = threading.Thread(target=answer)
        thread.start()
        shown = run(live, "compare", job_id, "--held-out", "--prompts", "2", *arguments).stdout
        thread.join()
        assert "الرباط" in shown
        assert ("better on 1 of 2 held-out prompts, the same on 0, worse on 0, broken on 1" in shown) == (not arguments)
    assert json.loads(shown)["result"]["share"] == 0.5
    assert run(live, "compare", job_id, code=2).stderr
    assert run(live, "compare", job_id, "سؤال", "--held-out", code=2).stderr


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
