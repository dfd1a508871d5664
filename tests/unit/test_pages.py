"""Every block of the pages is run by a test or, where a comment says why it cannot be, parsed."""

import ast
import json
import re
import shlex
import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from jobs.settings import Settings
from tests.pages import LANGUAGES, ROOT, RUN_ELSEWHERE, RUN_WHOLE, SCRIPTS, Block, blocks, original, pages
from trainer_core.errors import CODES

ALL = [block for page in pages() if not original(page) for block in blocks(page)]
TRANSLATED = [page for page in pages() if original(page)]
CODE = [block for block in ALL if block.language in LANGUAGES]
COMPOSE: dict[str, Any] = {
    name: yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    for name in ("docker-compose.yml", "docker-compose.watch.yml")
}


def places(found: list[Block]) -> Any:
    return pytest.mark.parametrize("block", found, ids=[block.place for block in found])


def test_every_page_is_found_and_every_fence_is_closed() -> None:
    assert set(SCRIPTS) <= set(pages())
    for page in pages():
        fences = re.findall(r"^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page


def test_the_tests_that_run_blocks_exist() -> None:
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in [*RUN_ELSEWHERE.values(), *RUN_WHOLE.values(), "test_a_page_does_what_it_prints"]:
        assert f"def {name}(" in written, name


@pytest.mark.parametrize("page", TRANSLATED)
def test_a_translated_page_has_the_blocks_of_the_english_one(page: str) -> None:
    """Every command and every printed line, in the same order. Copy a changed block from the English page."""
    shown, run = ([(each.language, each.text) for each in blocks(name)] for name in (page, original(page) or ""))
    assert shown == run


@pytest.mark.parametrize("page", TRANSLATED)
def test_a_translated_page_reads_from_right_to_left(page: str) -> None:
    """Readers set the direction of a paragraph by its first letter, so that it must be Arabic."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=[-#] |\d\. )", text)
    wrong = []
    for paragraph in paragraphs:
        first = re.search(r"[A-Za-z\u0621-\u064a]", paragraph)
        if first and first[0].isascii():
            wrong.append(paragraph.strip()[:80])
    assert wrong == []


@places([block for block in CODE if block.language in ("bash", "python")])
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    is_run = block.is_script or block.mark in RUN_ELSEWHERE or (block.page in RUN_WHOLE and block.language == "python")
    says_why = block.mark == "not" and len(block.told) > 10
    assert is_run or says_why, f"{block.place}: no test runs it; say why: <!-- not run: ... -->"


@places(CODE)
def test_a_block_can_be_read(block: Block) -> None:
    if block.language == "bash":
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
    elif block.language == "python":
        ast.parse(block.text)
    elif block.language == "json":
        _check_json(json.loads(block.text))
    elif block.language == "yaml":
        _check_compose(yaml.safe_load(block.text))
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "ini":
        _check_variables(dict(line.split("=", 1) for line in block.text.splitlines() if line and line[0] != "#"))
    else:
        _check_proxy(block)


def _check_json(value: dict[str, Any]) -> None:
    if error := value.get("error"):
        code = CODES[error["code"]]
        assert {name: error[name] for name in ("hint", "retryable", "user_fault")} == {
            "hint": code.hint,
            "retryable": code.retryable,
            "user_fault": code.user_fault,
        }


def _check_compose(value: dict[str, Any]) -> None:
    """What is laid over the compose file names its services, and variables that the settings know."""
    services = COMPOSE["docker-compose.yml"]["services"]
    for name, service in value["services"].items():
        like = service.get("extends", {}).get("service", name)
        assert like in services, f"{name} is no service of docker-compose.yml"
        _check_variables({k: v for k, v in service.get("environment", {}).items() if k.startswith("TAFDIL_")})
        for volume in service.get("volumes", []):
            assert volume.split(":")[1] in ("/data", "/models")
    for name in value.get("volumes", {}):
        assert name in COMPOSE["docker-compose.yml"]["volumes"]


def _check_variables(values: dict[str, str]) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    of_compose = {line.split("=")[0] for line in example.splitlines() if "=" in line}
    fields = {}
    for name, value in values.items():
        field = name.removeprefix("TAFDIL_").lower()
        if name.startswith("TAFDIL_") and field in Settings.model_fields:
            fields[field] = value
        else:
            assert name in of_compose or re.match(r"AWS_|CUDA_VISIBLE_DEVICES$", name), name
    Settings(**fields)


def _check_proxy(block: Block) -> None:
    """No proxy is at hand: braces match, and it sends what it gets to the published port."""
    assert block.text.count("{") == block.text.count("}")
    assert "127.0.0.1:8000" in block.text
    published = COMPOSE["docker-compose.yml"]["services"]["api"]["ports"]
    assert published == ["127.0.0.1:${TAFDIL_PORT:-8000}:8000"]
    if block.language == "nginx":
        assert all(line.rstrip().endswith((";", "{", "}")) for line in block.text.splitlines() if line.strip())


COMPOSE_COMMANDS = [
    shlex.split(command, comments=True)
    for block in CODE
    if block.language == "bash"
    for command in re.findall(r"^ *docker compose [^|>\n]*", block.text.replace("\\\n", " "), re.MULTILINE)
]


@pytest.mark.parametrize("command", COMPOSE_COMMANDS, ids=" ".join)
def test_a_compose_command_names_what_the_files_have(command: list[str]) -> None:
    words = command[2:]
    files, profiles = ["docker-compose.yml"], set()
    while words[0].startswith("-"):
        option, value = words.pop(0), words.pop(0)
        assert option in ("-f", "--profile")
        if option == "-f":
            files.append(value)
        else:
            profiles.add(value)
    assert set(files) <= set(COMPOSE)
    services = {name: service for file in files for name, service in COMPOSE[file]["services"].items()}
    laid_over = [yaml.safe_load(block.text)["services"].values() for block in CODE if block.language == "yaml"]
    overrides = [service for group in laid_over for service in group]
    known = {profile for service in [*services.values(), *overrides] for profile in service.get("profiles", [])}
    assert profiles <= known
    action, *rest = words
    assert action in ("up", "stop", "exec")
    named = {rest[place + 1].split("=")[0] for place, word in enumerate(rest) if word == "--scale"}
    if action != "up":
        named |= {word for word in rest if not word.startswith("-")} if action == "stop" else {rest[1]}
    elif "--no-deps" in rest:
        named.add(rest[-1])
    assert named <= set(services), named
