"""The command line's `data` commands against a service that listens, and on files alone."""

import json
import shlex
from pathlib import Path

from tests.integration.test_cli import ROWS, run
from tests.live import Live, live, settings

__all__ = ["live", "settings"]


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
