"""A data lead at a terminal: a sheet of her own becomes a dataset with one command."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tafdil import Client
from tests.stack import OnlyTheAPI
from tests.workbooks import xlsx

ROWS = [
    (number, f"ما ناتج {number} + {number}؟", f"الناتج {2 * number}.", f"لا أدري، اسأل غيري {number}.")
    for number in range(1, 13)
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[OnlyTheAPI]:
    with OnlyTheAPI(tmp_path_factory.mktemp("stack") / "data") as found:
        yield found


def terminal(
    words: list[str], folder: Path, stack: OnlyTheAPI, encoding: str = "utf-8", **more: str
) -> "subprocess.CompletedProcess[str]":
    """A command as a person runs it: a process of its own, in her folder, on a console of some encoding."""
    environment = {**os.environ, "TAFDIL_URL": stack.url, "PYTHONIOENCODING": encoding, "COLUMNS": "100"} | more
    command = [sys.executable, "-m", "tafdil.cli", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding=encoding, timeout=300, check=False
    )


def sheet(folder: Path, *headers: str) -> Path:
    path = folder / "sheet.xlsx"
    path.write_bytes(xlsx({"ورقة1": [list(headers), *map(list, ROWS)]}))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "cp1256", "ascii"])
def test_a_sheet_with_arabic_headers_is_uploaded_with_one_command(tmp_path: Path, stack: OnlyTheAPI, encoding: str) -> None:
    sheet(tmp_path, "م", "السؤال", "الإجابة الجيدة", "الإجابة السيئة")
    ran = terminal(["data", "upload", "sheet.xlsx"], tmp_path, stack, encoding)
    assert (ran.returncode, ran.stderr) == (0, "")
    made = re.match(r"([0-9a-f]{32})  12 rows \(pairs\)\n", ran.stdout)
    assert made, ran.stdout
    with Client(stack.url) as client:
        dataset = client.dataset(made[1])
        assert (dataset.name, dataset.file_kind, dataset.kind, dataset.train_rows) == ("sheet.xlsx", "xlsx", "pairs", 12)
        assert dataset.mapping == {"prompt": "السؤال", "chosen": "الإجابة الجيدة", "rejected": "الإجابة السيئة"}
        first = client.rows(dataset.id, 1, 1)[0]
    assert (first["prompt"], first["chosen"], first["rejected"]) == ROWS[0][1:]


def test_columns_of_any_name_take_the_command_that_the_terminal_proposes(tmp_path: Path, stack: OnlyTheAPI) -> None:
    """Nothing says which column is which, so the command asks, and prints the one that would answer."""
    sheet(tmp_path, "رقم", "السؤال", "نص أ", "نص ب")
    asked = terminal(["data", "upload", "sheet.xlsx"], tmp_path, stack)
    assert (asked.returncode, asked.stdout) == (3, "")
    assert "نص ب" in asked.stderr
    proposed = next(line.strip() for line in asked.stderr.splitlines() if line.strip().startswith("tafdil data upload"))
    words = shlex.split(proposed)
    assert words[:4] == ["tafdil", "data", "upload", "sheet.xlsx"]
    assert words.count("--map") == 3
    for column in ("نص أ", "نص ب"):
        place = next(place for place, word in enumerate(words) if word.endswith("=COLUMN"))
        words[place] = words[place].replace("COLUMN", column)
    ran = terminal([*words[1:], "--json"], tmp_path, stack)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["mapping"] == {"prompt": "السؤال", "chosen": "نص أ", "rejected": "نص ب"}


@pytest.mark.parametrize("more", [{"LC_ALL": "", "LC_MESSAGES": "", "LANG": "ar_EG.UTF-8"}, {"TAFDIL_LANG": "ar"}])
def test_a_broken_sheet_is_explained_in_the_language_of_the_locale(
    tmp_path: Path, stack: OnlyTheAPI, more: dict[str, str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "س", "chosen": \n', encoding="utf-8")
    for command in ("check", "upload"):
        arabic = terminal(["data", command, "rows.jsonl"], tmp_path, stack, **more)
        assert (arabic.returncode, arabic.stdout) == (3, "")
        assert arabic.stderr.startswith("خطأ: ")
        english = terminal(["data", command, "rows.jsonl"], tmp_path, stack, TAFDIL_LANG="en")
        assert english.stderr.startswith("error: ")
        assert "خطأ" not in english.stderr
