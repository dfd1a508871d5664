"""Job specs as a person gives them: a JSON or TOML file, options, and `--set name=value`."""

import hashlib
import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tafdil.cli.context import usage
from tafdil.client import Client


def read_spec(source: str | None) -> dict[str, Any]:
    """The spec in a file, or on standard input for `-`."""
    if source is None:
        return {}
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        usage(f"cannot read {source}: {error}")
    try:
        spec = tomllib.loads(text) if source.endswith(".toml") else json.loads(text)
    except ValueError as error:
        usage(f"{source} is no {'TOML' if source.endswith('.toml') else 'JSON'}: {error}")
    if not isinstance(spec, dict):
        usage(f"{source} must hold an object with the fields of a job spec")
    return spec


def changes(assignments: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs; a value is JSON where it can be read so, else text."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name:
            usage(f"--set takes name=value, not {assignment!r}")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


def data_fields(client: Client, source: str | None, field: str) -> dict[str, Any]:
    """How a spec names data that a person names: an id, a file here, or a path in the data directory.

    A file is uploaded, unless the service has one with the same bytes.
    """
    if source is None:
        return {}
    if len(source) == 32 and all(letter in "0123456789abcdef" for letter in source):
        return {f"{field}_id": source}
    if Path(source).is_file():
        return {f"{field}_id": _uploaded(client, Path(source))}
    return {f"{field}_path": source}


def _uploaded(client: Client, path: Path) -> str:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    known = next((dataset.id for dataset in client.datasets() if dataset.sha256 == sha256), None)
    return known or client.upload_dataset(path).id
