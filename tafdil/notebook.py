"""HTML for notebooks: small tables, with Arabic in its own direction and all user text escaped."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from tafdil.effects import EFFECTS
from tafdil.text import visible

_CELL = "text-align:start;padding:2px 8px;vertical-align:top"


def table_html(rows: Iterable[tuple[str, Any]]) -> str:
    """A two-column table of names and values."""
    cells = "".join(
        f'<tr><th style="{_CELL}">{_text(name)}</th><td style="{_CELL}" dir="auto">{_text(value)}</td></tr>'
        for name, value in rows
        if value is not None
    )
    return f"<table>{cells}</table>"


def job_html(job: Mapping[str, Any], standing: str) -> str:
    """A job with a progress bar."""
    bar = f'<progress max="100" value="{float(job["percent"]):g}" aria-label="progress"></progress>'
    rows = [
        ("job", job["name"] or job["id"]),
        ("id", job["id"]),
        ("method", job["method"]),
        ("model", job["model_name"]),
        ("state", standing),
        ("effect", EFFECTS.get(job["effect"], job["effect"]) if job.get("effect") else None),
        *(("warning", warning.get("message", warning)) for warning in job["warnings"]),
    ]
    return table_html(rows) + bar


def comparison_html(comparison: Mapping[str, Any]) -> str:
    """Both answers side by side."""
    result = comparison["result"] or {}
    sides = (("trained", "trained_model_response"), ("reference", "reference_model_response"))
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name, _ in sides)
    row = "".join(
        f'<td style="{_CELL};white-space:pre-wrap" dir="auto">{_text(result.get(field, "…"))}</td>' for _, field in sides
    )
    prompt = f'<caption dir="auto">{_text(comparison["request"].get("prompt", ""))}</caption>'
    return f"<table>{prompt}<tr>{head}</tr><tr>{row}</tr></table>"


def _text(value: Any) -> str:
    return f"<bdi>{escape(visible(str(value)))}</bdi>"
