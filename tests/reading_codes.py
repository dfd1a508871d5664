"""The codes of everything that can be wrong with a file, collected from the source of the reading layer."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "trainer_core"
SOURCES = [
    *sorted((ROOT / "reading").glob("*.py")),
    *sorted((ROOT / "layouts").glob("*.py")),
    *(ROOT / f"{name}.py" for name in ("rows", "row_rules", "row_conversion", "row_warnings", "reading_options")),
]
# What words a reason, and where its code stands in the call.
_PLACES = {"say": 0, "refuse": 0, "unclear": 1, "_ask_map": 1}


def codes() -> set[str]:
    """Every code of a reason that these modules write. Codes with a dot are of parts of sentences."""
    found = {code for path in SOURCES for code in _of(ast.parse(path.read_text(encoding="utf-8")))}
    return {code for code in found if "." not in code}


def _of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = _PLACES.get(name)
            if place is not None and place < len(node.args):
                yield from _constants(node.args[place])


def _constants(node: ast.AST) -> Iterator[str]:
    parts = (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,)
    yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))
