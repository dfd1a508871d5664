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
# Where the code stands in a call, by the name of what is called.
_PLACES = {
    "give_up": 2,
    "fail": 3,
    "Misfit": 2,
    "Problem": 2,
    "RowFault": 2,
    "HeaderFault": 1,
    "UnknownEncoding": 1,
    "_break": 1,
    "_ask_map": 2,
    "_wrong_map": 1,
    "refuse": 0,
    "Detail": None,
    "unclear": None,
}


def codes() -> set[str]:
    """Every code that these modules write."""
    return {code for path in SOURCES for code in _of(ast.parse(path.read_text(encoding="utf-8")))}


def _of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = _PLACES.get(name, -1)
            if place == -1:
                continue
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            given += [node.args[place]] if place is not None and place < len(node.args) else []
            yield from (code for each in given for code in _constants(each))
        elif isinstance(node, ast.FunctionDef):
            defaults = dict(zip(reversed(node.args.args), reversed(node.args.defaults), strict=False))
            yield from (code for arg, value in defaults.items() if arg.arg == "code" for code in _constants(value))
            if node.name == "misplaced":
                returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
                yield from (code for each in returned if isinstance(each, ast.Tuple) for code in _constants(each.elts[2]))


def _constants(node: ast.AST) -> Iterator[str]:
    parts = (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,)
    yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))
