"""The tutorial, the answers to symptoms and the pictures: what they name, draw and promise is what the code has."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from benchmarks.real_models import table
from jobs.settings import Settings
from jobs.spec import read_spec
from tafdil.cli import app
from trainer_core.errors import CODES

ROOT = Path(__file__).resolve().parents[2]
# Read by the clients, not by the service.
CLIENT_VARIABLES = {"url", "api_key"}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command of the command line by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_tutorial_has_the_estimates_that_its_command_prints() -> None:
    assert "\n".join(table()) in (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_the_job_of_the_tutorial_is_valid() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    found = re.search(r"<<'END'\n(.*?)END\n", page, re.DOTALL)
    assert found
    spec = read_spec({**tomllib.loads(found[1]), "learning_rate_cap": None, "dataset_path": "pairs.jsonl"})
    assert spec.model_name == "Qwen/Qwen2.5-0.5B-Instruct"
    changes = dict(change.split("=") for change in re.findall(r"--set (\S+=\S+)", page))
    assert set(changes) <= set(type(spec).model_fields)


@pytest.mark.parametrize("name", ["tutorial.md", "troubleshooting.md", "architecture.md", "quick_start.ar.md"])
def test_what_a_page_names_exists(name: str) -> None:
    """Commands, their options, variables and error codes."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert {each.removeprefix("TAFDIL_").lower() for each in re.findall(r"TAFDIL_\w+", page)} - CLIENT_VARIABLES <= set(
        Settings.model_fields
    )
    for line in re.findall(r"(?:^|`|bin/)(tafdil [a-z][^`\n#]*)", page, re.MULTILINE):
        words = shlex.split(line.rstrip("\\ "), comments=True)[1:]
        named = next((" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in COMMANDS), None)
        assert named, line
        options = {option for parameter in COMMANDS[named].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
    for heading in re.findall(r"^### (.+)$", page, re.MULTILINE):
        assert {word for word in re.findall(r"`(\w+)`", heading) if "_" in word or word == "hung"} <= set(CODES), heading


def test_the_picture_of_packages_is_the_import_contract_and_the_code() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Packages")[2]
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", page, re.MULTILINE))
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    assert {package for arrow in drawn for package in arrow} == set(packages)
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == sorted(packages)
    imported = set()
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
                imported |= {(package, name.split(".")[0]) for name in names}
    assert drawn == {(source, to) for source, to in imported if to in packages and to != source}


def test_the_picture_of_processes_has_every_service() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Packages")[0].lower()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    known = {name.removesuffix("-cpu").replace("-", " ").replace("postgres", "database") for name in services}
    picture = page.partition("```mermaid")[2].partition("```")[0]
    assert {name for name in known if name not in picture or f"| {name} |" not in page} == set()
