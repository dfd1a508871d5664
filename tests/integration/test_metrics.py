"""`docs/metrics.md` and the code say the same: its formulas give what the trainer reports, and it names every metric."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import reference_losses
from tests.fakes import RecordingObserver
from tests.methods import facts_of
from tests.training import METHODS, config, make_model, on_labels, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.config import SETTINGS_OF
from trainer_core.reference import side_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
CASES = [(method, fields) for method in METHODS for fields in facts_of(method).METRICS]


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[tuple[list[str], str]]:
    """(names, second column) of each row of a page's tables of metrics."""
    rows = re.findall(r"^\| ((?:`[\w/]+`(?:, )?)+) \| (.*?) \| ", text, re.MULTILINE)
    return [(re.findall(r"`([\w/]+)`", names), cell) for names, cell in rows]


def sections(method: str) -> list[str]:
    """Those of a method, the one that its own builds on first."""
    own = section(SETTINGS_OF[method].title)
    assert own, f"docs/metrics.md has no section on {method}"
    return [own] if on_labels(method) else [section("Methods on pairs"), own]


def documented(method: str) -> set[str]:
    own = {name for text in sections(method) for names, _ in table(text) for name in names}
    title = SETTINGS_OF[method].title
    every = {name for names, of in table(section("All methods")) if "all" in of or title in of for name in names}
    return own | every


def arrays(trainer: PreferenceTrainer, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The names of the page's formulas, computed row by row in float64 from the model's plain forward."""
    found: dict[str, Any] = {}
    places = {"completion": "answer", "KL_completion": "partner", "chosen": "chosen", "rejected": "rejected"}
    for field, name in places.items():
        if f"{field}_ids" not in rows[0]:
            continue
        values = []
        for row in rows:
            prompt, answer = row["prompt_ids"], row[f"{field}_ids"]
            live = reference_losses.answer_logps(trainer.model, prompt, answer).item()
            log_p = next_token_logps(trainer.model, prompt, answer)
            with side_of(trainer.ref_model):
                still = reference_losses.answer_logps(trainer.model, prompt, answer).item()
                log_q = next_token_logps(trainer.model, prompt, answer)
            values.append((live, still, len(answer), (log_p.exp() * (log_p - log_q)).sum().item()))
        columns = np.array(values).T
        found |= dict(zip((name, f"ref_{name}", f"{name}_tokens", f"{name}_kl"), columns, strict=True))
    if "label" in rows[0]:
        found["label"] = np.array([row["label"] for row in rows])
        found["weight"] = np.array([row.get("loss_weight", 1.0) for row in rows])
        place_of = {(row["row"], row["label"]): place for place, row in enumerate(rows)}
        pairs = sorted({row["row"] for row in rows if {(row["row"], True), (row["row"], False)} <= place_of.keys()})
        found["of_chosen"], found["of_rejected"] = (
            np.array([place_of[pair, label] for pair in pairs], dtype=int) for label in (True, False)
        )
    return found


def next_token_logps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize(("method", "fields"), CASES)
@torch.no_grad()
def test_the_formulas_of_the_page_are_what_is_reported(method: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """One batch holds all rows, so that the metrics of batches are those of all rows."""
    model = make_model(tmp_path / "model")
    settings = config(method, tmp_path, **{"model_name": model, "per_device_eval_batch_size": 64, **fields})
    trainer = PreferenceTrainer(settings, observer=RecordingObserver())
    trainer.prepare()
    trainer.model.eval()
    torch.manual_seed(3)
    for name, tensor in trainer.model.named_parameters():
        if "lora_B" in name:
            tensor.copy_(torch.randn(tensor.shape) * 0.05)
    is_of_pairs = Path(settings.dataset_path).name == "pairs_train.jsonl"
    raw = [json.loads(line) for line in Path(settings.dataset_path).read_text(encoding="utf-8").splitlines()[:13]]
    if settings.weighs_confidence:
        raw = [{**row, "confidence": (i + 1) / 13} for i, row in enumerate(raw)]
    results = trainer.evaluate_model(raw)

    functions = {
        "mean": lambda x: np.mean(x) if len(x) else None,
        "sum": np.sum,
        "where": np.where,
        "sign": np.sign,
        "log": np.log,
        "max": max,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }
    names: dict[str, Any] = {**functions, **settings.model_dump(), **arrays(trainer, trainer.data_loader.prepare(raw))}
    for text in sections(method):
        definitions = re.search(r"<!-- definitions: \w+ -->\n```python\n(.*?)```", text, re.DOTALL)
        assert definitions
        exec(definitions[1], names)  # noqa: S102  # the page's own code
    formulas = [(name, cell) for text in sections(method) for metrics, cell in table(text) for name in metrics]
    assert len(formulas) >= 11
    for name, formula in formulas:
        expected = eval(formula.strip("`"), names)  # noqa: S307  # the page's own code
        assert results[f"eval_{name}"] == (None if expected is None else pytest.approx(expected, rel=2e-4, abs=1e-5)), name
        needs_pairs = name in ("preference_accuracy", "margin_accuracy", "margin")
        is_missing = (needs_pairs and not is_of_pairs) or (name == "kl_estimate" and not settings.estimates_kl)
        assert (expected is None) is is_missing, name


@pytest.mark.parametrize("method", METHODS)
def test_the_page_names_every_metric_and_no_other(method: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", some_rows(method, 24))
    observer = RecordingObserver()
    fields = {"model_name": make_model(tmp_path / "model"), "dataset_path": path, "eval_dataset_path": path}
    trainer = PreferenceTrainer(config(method, tmp_path, **fields, sample_max_length=4), observer=observer)
    trainer.train()
    reported = {name.removeprefix("eval_") for _, values in observer.points for name in values}
    assert reported - documented(method) == set(), "reported, but not on the page"
    assert documented(method) - reported <= {"num_tokens"}, "on the page, but never reported"


def test_the_warnings_of_the_page_exist() -> None:
    code = "".join(path.read_text() for path in (Path(__file__).resolve().parents[2] / "trainer_core").rglob("*.py"))
    warnings = re.findall(r"^\| `(\w+)` \|", section("Warnings based on metrics"), re.MULTILINE)
    assert len(warnings) == 7
    for name in warnings:
        assert f'"{name}"' in code
