"""What a run would do, without its weights: rows and tokens, cuts and drops, steps, memory, time, rendered samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from trainer_core import data_report, estimates, forecast, lora_options, preflight
from trainer_core.config import PreferenceConfig
from trainer_core.data_loader import PreferenceData
from trainer_core.data_report import Vocabulary
from trainer_core.estimates import Load, Precision, Size, Work
from trainer_core.loading import loading
from trainer_core.memory import decide
from trainer_core.models import Locate, same_name
from trainer_core.observer import Observer
from trainer_core.plan import row_tokens
from trainer_core.renderers import load_renderer
from trainer_core.row_encoding import encode_rows
from trainer_core.row_names import AS_NUMBERED, RowNames
from trainer_core.row_rules import Row
from trainer_core.rows import check_rows
from trainer_core.tokens import Renderer
from trainer_core.wording import said, say

_SHOWN_ROWS = 1000
_BUCKETS = 16


@dataclass(frozen=True)
class Machine:
    """Where the run will take place, as far as is known.

    `flops_per_s` is its speed in practice; if it is None, no time is estimated. `is_measured`: the speed comes from earlier
    runs of the model. `free_bytes`: free memory for training; None if unknown. `startup_seconds`: from the claim to
    training, as measured in earlier runs of the model; None if there are none.
    """

    on_gpu: bool
    name: str = "cpu"
    flops_per_s: float | None = None
    is_measured: bool = False
    free_bytes: int | None = None
    startup_seconds: float | None = None


class _Notes(Observer):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[dict[str, Any]] = []

    def warning(self, code: str, message: str) -> None:
        self.warnings.append({"code": code, **said(message)})


def dry_run(
    config: PreferenceConfig, machine: Machine | None = None, *, locate: Locate = same_name, samples: int = 3
) -> dict[str, Any]:
    """What a run with this config would do.

    Args:
        machine: where it will run; default: this CPU, without a time estimate.
        samples: how many rendered rows to show.

    Returns:
        `data` (as in the metadata file, but names up to 1000 rows that are cut or dropped), `lengths` (rows by number of
        tokens), `plan` (steps), `forecast` (of the effect), `memory`, `time`, `warnings`, `stop_tokens` (where a turn ends),
        `samples`, and `report` (shortcuts and findings, as `data_report.summary_of_rows`).

    Raises:
        DataInvalid, DataOverlong, ModelNotFound, ModelRefused, SpecInvalid: as the run itself would.
    """
    machine = machine or Machine(on_gpu=False)
    places = preflight.check_models(config, locate)
    renderer = load_renderer(config, places.model)
    preflight.check_tokenizer(renderer.tokenizer, places.model)
    notes = _Notes()
    data = PreferenceData(config, renderer, notes)
    data.load()
    preflight.check_validation(config, data.validation, notes)
    preflight.warn_of_clamp(config, notes)
    lora_options.warn(config, places.adapter, notes)
    if not machine.on_gpu:
        for refusal in preflight.refusals_without_gpu(config, places):
            notes.warning("needs_gpu", say("needs_gpu", machine=machine.name, reason=refusal.details[0].reason))
    load = Load.of(data.train, data.validation, config)
    steps = estimates.planned_steps(config, load.batches)
    is_half = _precision(config, machine) != "fp32"
    forecast.warn(config, steps, estimates.steps_an_epoch(config, load.batches), notes, is_half=is_half)
    result: dict[str, Any] = {
        "data": data.report(shown_rows=_SHOWN_ROWS),
        "lengths": histogram([row_tokens(row) for row in data.train]),
        "plan": {
            "optimizer_steps": steps,
            "batches_an_epoch": load.batches,
            "rows_a_step": config.per_device_train_batch_size * config.gradient_accumulation_steps,
            "evaluations": estimates.evaluations(config, load.batches, has_validation=bool(data.validation)),
            "tokens_an_epoch": load.tokens,
            "learning_rate": config.effective_learning_rate,
        },
        "forecast": forecast.forecast(config, steps, is_half=is_half).as_dict(),
        "warnings": notes.warnings,
        "stop_tokens": renderer.stop.as_dicts(renderer.tokenizer),
        "samples": rendered(data.train[:samples], renderer, data.names),
        "report": data_report.summary_of_rows(data.read_rows, _vocabulary(config, renderer)),
    }
    try:
        with loading(places.model):
            found = AutoConfig.from_pretrained(places.model, trust_remote_code=False)
        size = Size.of(found.to_dict())
    except KeyError as error:
        notes.warning("no_estimate", say("no_estimate", field=str(error.args[0])))
        return {**result, "memory": None, "time": None}
    return {**result, **_estimated(config, size, load, machine)}


def _vocabulary(config: PreferenceConfig, renderer: Renderer) -> Vocabulary:
    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in renderer.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    return Vocabulary(config.model_name, count, config.max_prompt_length, config.max_length)


def _estimated(config: PreferenceConfig, size: Size, load: Load, machine: Machine) -> dict[str, Any]:
    precision = _precision(config, machine)
    checkpointing = config.gradient_checkpointing
    if checkpointing == "auto":
        whole = estimates.memory_parts(config, size, load, precision, on_gpu=machine.on_gpu, checkpointing=False)
        checkpointing = machine.free_bytes is not None and decide(sum(whole.values()), machine.free_bytes).checkpointing
    parts = estimates.memory_parts(config, size, load, precision, on_gpu=machine.on_gpu, checkpointing=checkpointing)
    total = sum(parts.values())
    low, high = estimates.MEMORY_BAND
    memory = {
        "bytes": total,
        "low_bytes": int(total * low),
        "high_bytes": int(total * high),
        "parts": parts,
        "free_bytes": machine.free_bytes,
        "fits": None if machine.free_bytes is None else total - parts["mapped_files"] <= machine.free_bytes,
        "precision": precision,
        "gradient_checkpointing": checkpointing,
        "weights": size.weights,
    }
    work = estimates.work(config, size, load, checkpointing=checkpointing)
    startup, value_bytes = machine.startup_seconds, 4 if precision == "fp32" else 2
    return {"memory": memory, "time": _time(work, machine, startup or estimates.startup_seconds(size, value_bytes))}


def _time(work: Work, machine: Machine, startup: float) -> dict[str, Any]:
    """The seconds of the steps and evaluations, and in total with those to start."""
    found = {"flops": work.flops + work.evaluation_flops, "machine": machine.name, "startup_seconds": startup}
    if machine.flops_per_s is None:
        return {**found, "seconds": None, "total_seconds": None, "basis": "none"}
    seconds = work.seconds(machine.flops_per_s, is_measured=machine.is_measured)
    low, high = estimates.TIME_BAND_OF_RUNS if machine.is_measured else estimates.TIME_BAND_OF_DEVICE
    basis = "earlier runs of this model" if machine.is_measured else "the speed of the device"
    band = {"seconds": seconds, "low_seconds": seconds * low, "high_seconds": seconds * high}
    whole = seconds + startup
    total = {"total_seconds": whole, "total_low_seconds": whole * low, "total_high_seconds": whole * high}
    return {**found, **band, **total, "basis": basis}


def _precision(config: PreferenceConfig, machine: Machine) -> Precision:
    asked = config.effective_precision
    if asked == "auto":
        return "bf16" if machine.on_gpu else "fp32"
    return asked


def preview(rows: Sequence[Any], config: PreferenceConfig, *, locate: Locate = same_name) -> list[dict[str, Any]]:
    """Raw rows as the model would see them, after any cut. Rows that `on_overlong` drops are left out.

    A row that a run would drop because it has no training signal says so.

    Returns:
        As `rendered`.

    Raises:
        DataInvalid, DataOverlong, ModelNotFound, ModelRefused: as a run would.
    """
    renderer = load_renderer(config, locate(config.model_name))
    # Rows read from a file have their number in it.
    known = [row.get("row") if isinstance(row, dict) else None for row in rows]
    numbers = [number if isinstance(number, int) else place for place, number in enumerate(known, start=1)]
    checked = [{**row, "row": numbers[row["row"] - 1]} for row in check_rows(rows, config.preference_method)]
    encoded, _ = encode_rows(checked, renderer, config, keep_all=True)
    return rendered(encoded, renderer)


def rendered(rows: Sequence[Row], renderer: Renderer, row_names: RowNames = AS_NUMBERED) -> list[dict[str, Any]]:
    """For each tokenised row: its number, its label if any, its prompt and answers as tokens, and why a run would drop it.

    A token has its `id`, its `text` and whether it counts towards the loss (`trained`): tokens of answers do, tokens of
    prompts do not. A token that ends within a letter has no text; the one that completes the letter has it.
    """
    shown: list[dict[str, Any]] = []
    for row in rows:
        names = [name for name in ("completion", "chosen", "rejected") if f"{name}_ids" in row]
        answers = {name: _tokens(row[f"{name}_ids"], renderer, trained=True) for name in names}
        prompt = _tokens(row["prompt_ids"], renderer, trained=False)
        number = row.get("row")
        facts = {
            "row": row_names.short(number) if number else None,
            "label": row.get("label"),
            "dropped_because": row.get("dropped_because"),
        }
        shown.append({**facts, "prompt": prompt, "answers": answers})
    return shown


def _tokens(ids: Sequence[int], renderer: Renderer, *, trained: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    start = 0
    for end, token in enumerate(ids, start=1):
        text: str = renderer.tokenizer.decode(ids[start:end])
        is_whole = not text.endswith("�")
        found.append({"id": token, "text": text if is_whole else "", "trained": trained})
        start = end if is_whole else start
    return found


def histogram(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Rows by length, in buckets of equal width: each has `rows` with at most `up_to` tokens."""
    width = max(1, -(-max(lengths) // _BUCKETS))
    counts = [0] * -(-max(lengths) // width)
    for length in lengths:
        counts[max(0, length - 1) // width] += 1
    return [{"up_to": (place + 1) * width, "rows": count} for place, count in enumerate(counts)]
