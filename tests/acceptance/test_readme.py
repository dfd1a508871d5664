"""A newcomer's road: the README's own lines, and the demo."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tafdil import Client
from tafdil.demo import MODEL
from tests.conftest import DATA
from tests.pages import make_clone
from tests.stack import OnlyTheAPI, StackUnderTest, until
from tests.training import some_rows, write_rows
from trainer_core.config import SETTINGS

ROOT = Path(__file__).resolve().parents[2]


def block(mark: str, page: str = "README.md") -> str:
    """The code block after a comment in a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {mark}[^>]*-->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[StackUnderTest]:
    with StackUnderTest(tmp_path_factory.mktemp("stack") / "data") as found:
        yield found


def ran(command: list[str], stack: StackUnderTest, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A command as a person of this machine runs it, where the service is the stack."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "TAFDIL_URL": stack.url, "PATH": path}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1000, check=False, env=environment)


def test_the_curl_walk(stack: StackUnderTest, tmp_path: Path) -> None:
    script = block("walk").replace("http://127.0.0.1:8000", stack.url)
    result = ran(["bash", "-euo", "pipefail", "-c", script], stack, make_clone(tmp_path / "clone"))
    assert result.returncode == 0, result.stderr
    assert "event: succeeded" in result.stdout
    assert "eval_preference_accuracy,1,0," in result.stdout
    assert '"complete":true' in result.stdout
    assert '"trained_model_response":' in result.stdout


def test_the_command_line_walk(stack: StackUnderTest, tmp_path: Path) -> None:
    shutil.copy(DATA / "pairs_train.jsonl", tmp_path / "rows.jsonl")
    result = ran(["bash", "-euo", "pipefail", "-c", block("commands", "docs/cli.md")], stack, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "good: 640 rows" in result.stdout
    assert "succeeded" in result.stdout
    assert re.search(r"trained    .*[\u0621-\u064a]", result.stdout)
    assert (tmp_path / "model" / "adapter_model.safetensors").stat().st_size > 1000


def test_the_client_page(stack: StackUnderTest, tmp_path: Path) -> None:
    code = block("client", "docs/client.md").replace("tafdil/shipped", str(ROOT / "tafdil/shipped"))
    result = ran([sys.executable, "-c", code], stack, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "succeeded" in result.stdout
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()


def test_the_library_example(tmp_path: Path) -> None:
    """On the first rows of the file: the example trains on all of it, and what it prints has no number of the page."""
    code = block("library").replace("./checkpoints/kto_arabic", str(tmp_path / "model"))
    clone = make_clone(tmp_path / "clone")
    rows = clone / "tafdil" / "shipped" / "data" / "kto_train.jsonl"
    rows.unlink()
    write_rows(rows, some_rows("kto", 160))
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"KTO Loss: \d\.\d{4}\nDesirable Accuracy: \d", result.stdout)
    assert (tmp_path / "model" / "kto_metadata.json").is_file()


def own_processes(folder: Path) -> list[str]:
    """Processes that run on a data directory."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ", "status"]):
        about: dict[str, Any] = process.info
        named = " ".join(about["cmdline"] or []) + str((about["environ"] or {}).get("TAFDIL_DATA_DIR"))
        if str(folder) in named and about["status"] != psutil.STATUS_ZOMBIE and about["pid"] != os.getpid():
            found.append(named)
    return found


def test_the_demo_learns_shows_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "tafdil.cli", "demo", "--data-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    print(result.stdout)
    titles = {each.title: each for each in SETTINGS if each.headline}
    rows = {
        cells[0]: cells[1:]
        for line in result.stdout.splitlines()
        if (cells := [cell.strip() for cell in line.split("│")[1:-1]]) and cells[0] in titles
    }
    assert set(rows) == set(titles)
    for method, (*numbers, effect, _) in rows.items():
        loss_before, loss_after, margin_accuracy, before, after = map(float, numbers)
        assert effect == "changed"
        assert loss_after < loss_before
        assert 0.4 <= before <= 0.6
        assert after > (0.85 if titles[method].rows == "labels" else 0.9)
        assert margin_accuracy > 0.9
    assert "lift the learning-rate cap" in " ".join(result.stdout.split())
    assert result.stdout.count("reference:") == 3
    for method in titles:
        assert len(re.findall(rf"^ +{method}: .*[\u0621-\u064a]", result.stdout, re.MULTILINE)) == 3
    assert own_processes(folder) == []


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_to_serve_leaves_no_process(tmp_path: Path, signal_name: str) -> None:
    """Also while a client reads an event stream and a job runs."""
    folder = tmp_path / "serve"
    command = [sys.executable, "-m", "tafdil.cli", "serve", "--data-dir", str(folder), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert url
        with Client(url[0]) as client:
            rows = "samples/kto_train.jsonl"
            job = client.submit({"method": "kto", "model_name": MODEL, "dataset_path": rows, "num_train_epochs": 100})
            events = client.events(job["id"])
            assert next(events)["event"] == "queued"
            assert len(own_processes(folder)) >= 5
            process.send_signal(signal.Signals[signal_name])
            process.stdout.read()
            assert process.wait(300) == (-signal.SIGKILL if signal_name == "SIGKILL" else 0)
            events.close()
    until(lambda: not own_processes(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models-dir", "/nowhere"], "models directory /nowhere does not exist"),
        (["--port", "99999"], "65535"),
    ],
)
def test_serve_says_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "tafdil.cli", "serve", "--data-dir", str(tmp_path), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_or_a_directory_in_use_is_named(tmp_path: Path) -> None:
    with OnlyTheAPI(tmp_path) as stack:
        for arguments, message in (
            (["--port", str(stack.port), "--data-dir", str(tmp_path / "other")], f"port {stack.port} cannot be used"),
            (["--port", "0", "--data-dir", str(tmp_path)], "another stack uses"),
        ):
            command = [sys.executable, "-m", "tafdil.cli", "serve", *arguments]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
            assert result.returncode == 1
            assert message in " ".join(result.stderr.split())
