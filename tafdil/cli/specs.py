"""Reads job specs from JSON or TOML files, options, and `--set name=value`."""

import codecs
import hashlib
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tafdil.cli.context import usage
from tafdil.cli.names import find_dataset, is_id, search_dataset
from tafdil.client import Client
from trainer_core.wording import say


def read_spec(source: str | None) -> dict[str, Any]:
    """The spec in a file, or on standard input for `-`: UTF-8, or UTF-16 as Notepad and PowerShell write it."""
    if source is None:
        return {}
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except FileNotFoundError:
        usage(say("cli.no_file", path=source))
    except OSError as error:
        usage(say("cli.cannot_read", path=source, problem=error.strerror or str(error)))
    shown = say("cli.standard_input") if source == "-" else source
    kind = "TOML" if source.lower().endswith(".toml") else "JSON"
    text = _text(data, shown)
    try:
        spec = tomllib.loads(text) if kind == "TOML" else json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, RecursionError):
            usage(say("cli.spec_too_deep", file=shown))
        code = "cli.spec_not_toml" if kind == "TOML" else "cli.spec_not_json" if source == "-" else "cli.spec_file_not_json"
        usage(say(code, file=shown, problem=str(error)))
    if not isinstance(spec, dict):
        usage(say("cli.spec_not_object", file=shown))
    return spec


def _text(data: bytes, shown: str) -> str:
    """The text of a spec. `shown` is its name in errors."""
    encoding = _encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        byte, place = data[error.start], error.start
        usage(say("cli.spec_bytes", file=shown, encoding=encoding.upper(), byte=f"0x{byte:02x}", offset=place))
    if "\0" in text:
        usage(say("cli.spec_no_text", file=shown))
    # A file that was converted twice has two byte order marks.
    return text.lstrip("\ufeff")


def _encoding(data: bytes) -> str:
    """The encoding of a spec. It begins with an ASCII character, so a zero byte beside it means UTF-16 without a mark."""
    if data.startswith(codecs.BOM_UTF16_LE) or (len(data) > 1 and data[0] and not data[1]):
        return "utf-16-le"
    if data.startswith(codecs.BOM_UTF16_BE) or (len(data) > 1 and not data[0] and data[1]):
        return "utf-16-be"
    return "utf-8"


def changes(assignments: Sequence[str]) -> dict[str, Any]:
    """Parses `name=value` pairs. A value is JSON if it parses as JSON, otherwise text."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name:
            usage(say("cli.set_form", value=assignment))
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


def data_fields(client: Client, source: str | None, field: str) -> dict[str, Any]:
    """The spec's field for a data source: a local file, a dataset, or else a path in the data directory.

    A file is uploaded, unless the service has one with the same bytes. A dataset is found like in `names.find_dataset`.
    """
    if source is None:
        return {}
    if is_id(source):
        return {f"{field}_id": source}
    if Path(source).is_file():
        return {f"{field}_id": _uploaded(client, Path(source))}
    dataset = search_dataset(client, source)
    return {f"{field}_path": source} if dataset is None else {f"{field}_id": dataset.id}


def named_datasets(client: Client, spec: Mapping[str, Any]) -> dict[str, str]:
    """The ids of datasets that a spec refers to by name."""
    named = {field: spec.get(field) for field in ("dataset_id", "eval_dataset_id")}
    return {
        field: find_dataset(client, name).id for field, name in named.items() if isinstance(name, str) and not is_id(name)
    }


def _uploaded(client: Client, path: Path) -> str:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    # A converted file is recognized by its original bytes, if it was read without options.
    known = next(
        (
            dataset.id
            for dataset in client.datasets()
            if dataset.sha256 == sha256 or (dataset.source_sha256 == sha256 and not dataset.options)
        ),
        None,
    )
    return known or client.upload_dataset(path).id
