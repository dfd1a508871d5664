"""The pages' own lines, as printed, on a real stack. `tests/pages.py` says how blocks are marked."""

import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tafdil import Client
from tests.pages import ROOT, SCRIPTS, Block, blocks, make_clone, marked, script, unseen
from tests.stack import OnlyTheAPI, StackUnderTest

SPEC = {
    "method": "ipo",
    "model_name": "tafdil/tiny-arabic-qwen-2",
    "dataset_path": "samples/pairs_train.jsonl",
    "learning_rate": 0.001,
    "learning_rate_cap": None,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
}
_ADMIN_KEY = "an admin key of the tests, long enough"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[StackUnderTest]:
    with StackUnderTest(tmp_path_factory.mktemp("stack") / "data") as found:
        yield found


@pytest.fixture(scope="module")
def finished(stack: StackUnderTest) -> str:
    """The id of a job that succeeded."""
    with Client(stack.url) as client:
        return client.submit(SPEC).wait(check=True).id


@pytest.fixture
def clone(stack: StackUnderTest, tmp_path: Path) -> Path:
    """A directory that looks like a clone in which the stack was started, where a page's lines may write."""
    folder = make_clone(tmp_path / "clone")
    (folder / "tafdil-data").symlink_to(stack.data_dir)
    return folder


def run(code: str, stack: StackUnderTest, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs bash as a person with the clone's environment does."""
    environment = {
        **os.environ,
        "TAFDIL_URL": stack.url,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    code = code.replace("http://127.0.0.1:8000", stack.url)
    command = ["bash", "-euo", "pipefail", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1000, check=False, env=environment)


@pytest.mark.parametrize("page", SCRIPTS)
def test_a_page_does_what_it_prints(page: str, stack: StackUnderTest, clone: Path, request: pytest.FixtureRequest) -> None:
    variables = {}
    if page == "docs/artifacts.md":
        job = request.getfixturevalue("finished")
        with Client(stack.url) as client:
            artifact = client.artifacts(job, ["model"])[1].id
        variables = {"API": stack.url, "job": job, "artifact": artifact}
    result = run(script([block for block in blocks(page) if block.is_script]), stack, clone, **variables)
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    assert unseen(page, result.stdout + result.stderr) == []


def test_the_page_of_keys(tmp_path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAFDIL_ADMIN_KEY", _ADMIN_KEY)
    with OnlyTheAPI(tmp_path / "keys") as stack:
        result = run(script(marked("docs/curl.md", "keys")), stack, clone, API=stack.url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert '"tenant":"research"' in result.stdout
    assert "exit code 22" in result.stdout


@pytest.mark.parametrize(
    "line", [line for block in marked("docs/reliability.md", "lines") for line in block.text.splitlines()]
)
def test_each_line_does_what_it_says(line: str, stack: StackUnderTest, finished: str, clone: Path) -> None:
    """Each on a job of its own, which stays in the queue as no worker is of its class."""
    job = finished
    if "rerun" not in line and "attempts" not in line:
        with Client(stack.url) as client:
            waiting = client.submit({**SPEC, "gpu_class": "nowhere"})
            job = (waiting.pause() if "/resume" in line else waiting).id
    result = run(line, stack, clone, API=stack.url, job=job)
    assert result.returncode == 0, result.stderr
    expected = {"pause": "paused", "resume": "queued", "cancel": "cancelled", "rerun": "queued", "attempts": "succeeded"}
    action = re.search(r"\$job/(\w+)", line)
    assert action
    assert f'"{expected[action[1]]}"' in result.stdout


def test_a_block_of_python(stack: StackUnderTest, clone: Path) -> None:
    (found,) = marked("README.md", "python")
    rows = (ROOT / "tafdil/shipped/data/kto_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (clone / "rows.jsonl").write_text("".join(rows[:16]), encoding="utf-8")
    result = run(script([found]), stack, clone)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "succeeded\n"


def test_the_errors_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    from trainer_core.errors import DataInvalid, Detail

    class Trainer:
        def train(self) -> None:
            raise DataInvalid("line 2: label: is missing", [Detail("label", "is missing", 2)])

    (found,) = marked("docs/errors.md", "errors")
    names: dict[str, Any] = {"trainer": Trainer()}
    exec(found.text, names)  # noqa: S102  # the page's own code
    assert capsys.readouterr().out == "2 label is missing\n"


# -- every route is on the page of curl

_PARTS = {"jobs": "job_id", "datasets": "dataset_id", "tasks": "task_id", "keys": "key_id"}
_PARTS |= {"artifacts": "artifact_id", "comparisons": "comparison_id", "held_out": "comparison_id"}


def asked(found: list[Block]) -> set[tuple[str, str]]:
    """Method and path, as OpenAPI writes them, of every curl of the blocks."""
    routes = set()
    text = "\n".join(block.text for block in found if block.language == "bash").replace("\\\n", " ")
    for command in re.findall(r"curl [^\n]*\$API/[^\n]*", text):
        path = re.search(r"\$API(/[^\s\"'?]*)", command)
        assert path
        parts = path[1].split("/")
        for place, part in enumerate(parts):
            if re.match(r"\$|[0-9a-f]{32}$", part):
                parts[place] = "{" + _PARTS[parts[place - 1]] + "}"
        has_body = re.search(r" (-d|--data-binary) ", command)
        method = re.search(r" -X (\w+)", command)
        routes.add((method[1].lower() if method else "post" if has_body else "get", "/".join(parts)))
    return routes


def test_the_page_of_curl_has_every_route(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from api.app import create_app

    monkeypatch.setenv("TAFDIL_DATA_DIR", str(tmp_path))
    described = create_app().openapi()["paths"]
    routes = {(method, path) for path, methods in described.items() for method in methods}
    assert asked(blocks("docs/curl.md")) == routes
