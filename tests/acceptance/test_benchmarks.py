"""The benchmarks run: what they measure is for people, not for tests."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import IO

import pytest

from benchmarks import demo_proof, gpu_check
from benchmarks.gpu.arm import ARMS
from tests.forking import Forked, fork
from tests.training import ON_LABELS, ON_PAIRS, train_file
from trainer_core.config import HEADLINE

ROOT = Path(__file__).resolve().parents[2]


def test_the_gpu_check_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    arguments = ["--shape", "tiny", "--arms", "machine", "--out", str(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), *arguments]
    result = subprocess.run(command, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (arm,) = json.loads((tmp_path / "out" / "gpu_check.json").read_text(encoding="utf-8"))["arms"]
    assert (arm["arm"], arm["state"]) == ("machine", "ended")


@pytest.mark.long
def test_every_arm_of_the_gpu_check_runs_where_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "gpu.md"
    page.write_text("# GPUs\n\n<!-- the last run -->\n\nan earlier run\n", encoding="utf-8")
    monkeypatch.chdir(ROOT)

    def start(command: list[str], environment: dict[str, str], output: IO[bytes]) -> Forked:
        """Forked, as each arm would import the training libraries anew."""
        return fork([*command[:2], "tests.rig.arm", *command[3:]], environment, output, trains=True)

    gpu_check.main(["--shape", "tiny", "--out", str(tmp_path / "out"), "--write", str(page)], start)
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text(encoding="utf-8"))
    rows = {arm["arm"]: arm["rows"] for arm in found["arms"]}
    assert {arm["state"] for arm in found["arms"]} == {"ended"}
    assert {row["path"] for row in rows["parity"]} == {"plain", "segments"}
    assert all(row["ratio"] < 2 for row in rows["parity"])
    assert {(row["method"], row["weights"]) for row in rows["speed"]} == set(product(HEADLINE, ("bf16", "4-bit")))
    assert not [row for row in rows["whole"] if "error" in row]
    assert all(row["repeat_equal"] and row["resume_equal"] for row in rows["resume"])
    service = {row["what"]: row for row in rows["service"]}
    assert service["train"]["state"] == "succeeded"
    assert service["train"]["start"] == "warm"
    assert service["compare"]["weights_are_those_trained"]
    assert service["cancel"]["state"] == "cancelled"
    written = page.read_text(encoding="utf-8")
    assert written.startswith("# GPUs")
    assert "an earlier run" not in written
    assert all(arm.question in written for arm in ARMS)


@pytest.fixture
def few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first rows of the shipped files, instead of all of them."""
    for name in ("kto_train", "pairs_train", "pairs_held_out"):
        lines = (demo_proof.SHIPPED_DATA_DIR / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:16]), encoding="utf-8")
    monkeypatch.setattr(demo_proof, "SHIPPED_DATA_DIR", tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", [ON_LABELS, ON_PAIRS])
def test_the_margins_of_the_demo_proof_are_those_that_the_trainer_measures(method: str, few_rows: Path) -> None:
    trainer = demo_proof.train(method, few_rows / train_file(method), few_rows / "output", max_steps=2)
    found = demo_proof.HeldOut(trainer)
    assert len(found.margins) == 16
    assert trainer.effect
    assert trainer.effect.evidence.margin
    assert demo_proof.mean(found.margins) == pytest.approx(trainer.effect.evidence.margin.mean, rel=1e-4)


def test_the_demo_proof_prints_a_table_and_keeps_its_figures(few_rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--methods", "ipo", "--seeds", "1", "--max-steps", "2", "--processes", "1"]
    demo_proof.main([*few, "--out", str(few_rows / "out" / "proof.json")])
    (proof,) = json.loads((few_rows / "out" / "proof.json").read_text(encoding="utf-8"))
    assert (proof["method"], proof["rows"], len(proof["shuffled"])) == ("ipo", 16, 1)
    assert 0 < proof["margin_accuracy"] <= 1
    assert proof["counter_sets"]
    assert {left["kind"] for left in proof["counter_sets"]} <= {"exchanged", "made_equal", "opposite_rows"}
    printed = capsys.readouterr().out
    assert printed.startswith("| method |")
    assert all(f"| {left['trait']} | {left['kind']} |" in printed for left in proof["counter_sets"])


def test_shuffled_labels_say_nothing() -> None:
    pairs = [{"prompt": "س", "chosen": "نعم", "rejected": "لا"}] * 10
    swapped = demo_proof.shuffled_rows(pairs, 1)
    assert sum(row["chosen"] == "لا" and row["rejected"] == "نعم" for row in swapped) == 5
    labelled = [{"prompt": "س", "completion": str(i), "label": i < 5} for i in range(10)]
    dealt = demo_proof.shuffled_rows(labelled, 2)
    assert [row["completion"] for row in dealt] == [row["completion"] for row in labelled]
    assert sum(row["label"] for row in dealt) == 5
    assert dealt != labelled


def test_a_fact_is_found_as_whole_words() -> None:
    assert demo_proof.has_words("عاصمة المغرب هي الرباط، طاب يومك.", "الرباط")
    assert demo_proof.has_words("ناتج 8 + 5 هو 13.", "13")
    assert not demo_proof.has_words("ناتج 8 + 5 هو 131.", "13")
    assert not demo_proof.has_words("هي الرباطات", "الرباط")
