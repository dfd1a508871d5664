"""`docs/trainer_core.md` works as printed: only the model's name and the paths are replaced."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.training import make_model, some_rows, write_rows
from trainer_core.config import CONFIG_OF, HEADLINE, SETTINGS
from trainer_core.row_rules import Row
from trainer_core.rows import read_rows

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "trainer_core.md").read_text(encoding="utf-8")
KINDS: dict[str, Any] = {each.title: CONFIG_OF[each.method_name] for each in SETTINGS}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_block_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for name in ("arabic_kto", "kto_data"):
        write_rows(tmp_path / "data" / f"{name}.jsonl", some_rows("kto", 48))
    for name in ("arabic_preferences", "preference_pairs"):
        write_rows(tmp_path / "data" / f"{name}.jsonl", some_rows("ipo", 48))
    model = make_model(tmp_path / "model", hidden_size=64)
    monkeypatch.chdir(tmp_path)

    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 18
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("Qwen/Qwen2.5-7B", model), names)  # noqa: S102  # the page's own code
    for method in HEADLINE:
        assert (tmp_path / "checkpoints" / method / f"{method}_metadata.json").is_file()
        assert (tmp_path / "checkpoints" / f"{method}_arabic" / "adapter_model.safetensors").is_file()


def test_the_rows_of_the_page_are_read(tmp_path: Path) -> None:
    blocks = re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    kinds: list[set[str]] = []
    for block in blocks:
        row: Row = json.loads(block)
        path = write_rows(tmp_path / "rows.jsonl", [row])
        assert len(read_rows(Path(path), "kto")["train"]) == (1 if "label" in row else 2)
        kinds.append(set(row))
    assert [("label" in kind, "chosen" in kind) for kind in kinds] == [(True, False), (False, True), (False, True)]


def test_the_page_lists_every_setting() -> None:
    def default(field: Any) -> str:
        return "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"

    expected = {}
    for name in dict.fromkeys(name for kind in KINDS.values() for name in kind.model_fields):
        fields = {label: kind.model_fields[name] for label, kind in KINDS.items() if name in kind.model_fields}
        groups: dict[str, list[str]] = {}
        for label, field in fields.items():
            groups.setdefault(default(field), []).append(label)
        shown = next(iter(groups))
        if len(groups) > 1:
            shown = "; ".join(f"{', '.join(labels)}: {value}" for value, labels in groups.items())
        meanings: dict[str, list[str]] = {}
        for label, field in fields.items():
            meanings.setdefault(str(field.description), []).append(label)
        is_general = len(fields) == len(KINDS) and len(meanings) == 1
        said = [text if is_general else f"{', '.join(labels)}: {text}" for text, labels in meanings.items()]
        expected[name] = f"{shown} | {' '.join(said)}"
    settings = PAGE.partition("<!-- settings")[2].partition("<!-- end of settings")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", settings, re.MULTILINE)) == expected
