"""Spec files as editors and shells of every kind write them."""

import io
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tafdil.cli import app
from tafdil.cli.specs import read_spec

SPEC = {"method": "ipo", "model_name": "tafdil/tiny-arabic-qwen-2", "name": "تجربة é 🚀"}
MARK = "\ufeff"


@pytest.mark.parametrize("suffix", ["json", "toml", "TOML"])
def test_a_spec_may_be_written_by_any_editor(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"spec.{suffix}"
    text = json.dumps(SPEC, ensure_ascii=False)
    if suffix != "json":
        text = "\r\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in SPEC.items())
    for data in (
        text.encode("utf-8"),
        text.encode("utf-8-sig"),
        (MARK * 2 + text).encode("utf-8"),
        (MARK + text).encode("utf-16-le"),
        (MARK + text).encode("utf-16-be"),
        (MARK * 2 + text).encode("utf-16-le"),
        text.encode("utf-16-le"),
        text.encode("utf-16-be"),
    ):
        file.write_bytes(data)
        assert read_spec(str(file)) == SPEC
        if suffix == "json":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
            assert read_spec("-") == SPEC


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"name": "تجربة"}'.encode("cp1256"), "is not UTF-8 text (byte 0xca at offset 10). Save it as UTF-8"),
        ('{"name": 1}'.encode("utf-16")[:-1], "is not UTF-16-LE text"),
        ('{"name": 1}'.encode("utf-32"), "is neither UTF-8 nor UTF-16 text. Save it as UTF-8"),
        ('{"name": 1}'.encode("utf-32-le"), "is neither UTF-8 nor UTF-16 text"),
        (b"\x1f\x8b\x08\x00", "is not UTF-8 text"),
        (b"", "is not valid JSON"),
        (b'method = "ipo"', "must end in .toml"),
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "must contain an object"),
    ],
)
def test_a_spec_that_cannot_be_read_is_named_with_the_fix(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "spec.json"
    file.write_bytes(data)
    refused = CliRunner().invoke(app, ["submit", str(file)])
    assert refused.exit_code == 2
    assert f"error: {file} " in refused.stderr
    assert said in refused.stderr
    piped = CliRunner().invoke(app, ["submit", "-"], input=data)
    assert piped.exit_code == 2
    assert "standard input" in piped.stderr
