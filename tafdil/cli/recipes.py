"""Recipes on the command line: a file of rows is enough for a job, and dry runs show what a recipe set."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tafdil.cli.context import emit
from tafdil.cli.names import is_id
from tafdil.cli.words import in_words, sentence
from tafdil.client import Client
from trainer_core.config import default_for
from trainer_core.wording import say

SMALL_MODEL = "tafdil/tiny-arabic-qwen-2"
# Files with these endings hold rows. A spec ends in `.json` or `.toml`.
_ROWS = frozenset(
    {
        *(".jsonl", ".ndjson", ".csv", ".tsv", ".xlsx", ".xlsb", ".xls", ".ods", ".parquet", ".arrow", ".feather"),
        *(".gz", ".zst", ".xz", ".bz2", ".zip"),
    }
)


def is_rows(source: str | None) -> bool:
    """Whether a command was given a file of rows instead of a spec."""
    return source is not None and Path(source).suffix.lower() in _ROWS and Path(source).is_file()


def chosen_for_rows(client: Client, spec: Mapping[str, Any]) -> dict[str, str]:
    """The method and the model of a spec with a recipe that names neither: what its rows are for, and the small model."""
    found: dict[str, str] = {}
    if "method" not in spec and is_id(spec.get("dataset_id")):
        found["method"] = default_for(client.dataset(spec["dataset_id"]).kind)
    if "model_name" not in spec:
        found["model_name"] = SMALL_MODEL
    return found


def show_recipe(recipe: dict[str, Any]) -> None:
    """What a recipe set, and why."""
    emit(say("cli.recipe", name=recipe["name"], version=recipe["version"], basis=in_words(sentence(recipe), sys.stdout)))
    for field in recipe["fields"]:
        value = json.dumps(field["value"])
        emit(f"  {field['name']} = {value}: {in_words(sentence(field), sys.stdout)}")
