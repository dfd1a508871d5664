"""Configs of small trainings on the shipped model, for the tests of the library."""

import json
import math
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.conftest import DATA, TINY_MODEL
from trainer_core.config import CONFIG_OF, SETTINGS_OF, default_for
from trainer_core.row_rules import LABELLED, PAIRS

CONFIGS: dict[str, Any] = dict(CONFIG_OF)
METHODS = tuple(CONFIGS)
# One method for each kind of rows.
ON_LABELS, ON_PAIRS = default_for(LABELLED), default_for(PAIRS)
PAIR_METHODS = tuple(method for method, settings in SETTINGS_OF.items() if settings.rows == "pairs")
PROMPT = "هل تعرف اسم عاصمة المغرب؟"
# Enough for the longest run of a test; reading and tokenizing all 640 takes a fifth of a short run's time.
ROWS = 160
_SHORTENED = TemporaryDirectory()


def config(method: str, output_dir: Path, /, **fields: Any) -> Any:
    base = {
        "model_name": str(TINY_MODEL),
        "dataset_path": first_rows(method),
        "output_dir": str(output_dir),
        "learning_rate": 1e-3,
        "learning_rate_cap": None,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        # Of the answers before and after a run. Tests of what such answers show set more.
        "sample_max_length": 8,
    }
    return CONFIGS[method](**{**base, **fields})


def on_labels(method: str) -> bool:
    """Whether a method's loss is computed from single answers with a label."""
    return SETTINGS_OF[method].rows == "labels"


def train_file(method: str) -> str:
    """The name of the shipped training data."""
    return "kto_train.jsonl" if on_labels(method) else "pairs_train.jsonl"


@cache
def first_of_each_trainer() -> tuple[str, ...]:
    """One method for each of TRL's trainers: what happens around the loss is the same for the other methods of a trainer."""
    from trainer_core.methods import METHOD_OF

    firsts: dict[type, str] = {}
    for method in METHODS:
        trainer: Any = METHOD_OF[method].trainer_class
        firsts.setdefault(next(each for each in trainer.__mro__ if each.__module__.startswith("trl.")), method)
    return tuple(firsts.values())


def crossed(options: Sequence[Any], ids: Sequence[str] | None = None) -> list[Any]:
    """Parameters `method` and an option: each method with the first option, and each option with a method of each trainer.

    `make long` runs the other combinations, in which neither is new.
    """
    return [
        pytest.param(
            method,
            option,
            marks=() if not place or method in first_of_each_trainer() else pytest.mark.long,
            id=f"{name}-{method}",
        )
        for place, (option, name) in enumerate(zip(options, ids or [str(option) for option in options], strict=True))
        for method in METHODS
    ]


def soon(methods: Sequence[str]) -> list[Any]:
    """All methods as parameters, of which `make long` runs those that are not given."""
    return [pytest.param(method, marks=() if method in methods else pytest.mark.long) for method in METHODS]


@cache
def first_rows(method: str, count: int = ROWS) -> str:
    """A file of the first rows of the shipped training data."""
    path = Path(_SHORTENED.name) / str(count) / train_file(method)
    path.parent.mkdir(exist_ok=True)
    return write_rows(path, some_rows(method, count))


@cache
def held_out(method: str, count: int = 32) -> str:
    """A file of rows that no sample training knows."""
    rows = [json.loads(line) for line in (DATA / "pairs_held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    if on_labels(method):
        rows = json.loads((DATA / "kto_split.json").read_text(encoding="utf-8"))["validation"]
    return write_rows(Path(_SHORTENED.name) / f"{method}-{count}.jsonl", rows[:count])


def learning_rates(settings: Any, steps: int) -> list[float]:
    """The learning rate of each optimizer step of a run: transformers' course, with a warm-up that starts above zero."""
    import torch
    from transformers import get_scheduler

    warm_up = math.ceil(settings.warmup_ratio * steps) if settings.warmup_steps is None else settings.warmup_steps
    warm_up = 0 if settings.lr_scheduler_type == "constant" else warm_up
    floor = {} if settings.min_lr_rate is None else {"scheduler_specific_kwargs": {"min_lr_rate": settings.min_lr_rate}}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    kind = settings.lr_scheduler_type
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warm_up, num_training_steps=steps, **floor)
    shares = [(i + 1) / (warm_up + 1) if i < warm_up else scheduler.lr_lambdas[0](i) for i in range(steps)]
    return [settings.effective_learning_rate * share for share in shares]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes JSONL and returns its path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def some_rows(method: str, count: int) -> list[dict[str, Any]]:
    """The first rows of the shipped training data."""
    lines = (DATA / train_file(method)).read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line) for line in lines]


def make_model(folder: Path, architecture: str = "qwen2", hidden_size: int = 32) -> str:
    """Writes a small model with random weights and the shipped tokenizer, and returns its directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen3Config

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    settings = Qwen2Config(**shape) if architecture == "qwen2" else Qwen3Config(**shape, head_dim=hidden_size // 4)
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@cache
def small_model() -> str:
    """A model of `make_model` that tests share, for runs whose numbers need no trained model. A run takes half the time."""
    return make_model(Path(_SHORTENED.name) / "model")


def copy_model(folder: Path, template: str | None = None, **files: dict[str, Any]) -> str:
    """The shipped model with other settings, by file, and another template."""
    shutil.copytree(TINY_MODEL, folder)
    for name, changes in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(folder)
