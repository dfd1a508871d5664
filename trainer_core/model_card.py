"""The README.md beside a trained model: what it is, and the code that loads it as comparisons did.

The hub reads its front matter. It names models, and never a path on this machine. Knows metadata and files; knows nothing of
live models, jobs or hubs.
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from trainer_core import model_files
from trainer_core.config import SETTINGS_OF

FILE = "README.md"
_FINGERPRINTS = {
    "merged_sha256": "These weights",
    "weights_sha256": "Trained weights",
    "base_weights_sha256": "Base weights",
    "reference_sha256": "Reference weights",
    "template_sha256": "Chat template",
    "data_plan_sha256": "Training rows, in their order",
}
_RATES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
# Fields for a licence's name and link. Nothing else from a base's card is repeated.
_LICENCE_FIELDS = {
    "license": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
    "license_name": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
    "license_link": re.compile(r"https://[A-Za-z0-9./_~%#?=&-]{1,300}"),
}
_UNKNOWN_LICENCE = {"license": "other", "license_name": "unknown"}
_MOST_BYTES = 2**20


def write(folder: Path, metadata: Mapping[str, Any], base: str, *, step: int | None = None, merged: bool = False) -> None:
    """Writes the card of an adapter or a model, replacing an existing one such as peft's.

    Args:
        folder: holds the files.
        metadata: contents of the metadata file; `dtype` is the dtype to load the model in.
        base: directory or hub name of the model that was trained, whose card may name a licence.
        step: the step, for a checkpoint.
        merged: whether these are a base's weights with the adapter added.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    licence = licence_of(base)
    parts = [
        _front_matter(metadata, licence, is_adapter=is_adapter, is_merged=merged),
        f"# {_title(metadata, step, is_adapter=is_adapter, is_merged=merged)}",
        _list(_facts(metadata, licence, is_merged=merged)),
        _how_to_load(metadata, is_adapter=is_adapter),
    ]
    if evaluated := metadata.get("evaluation"):
        numbers = {name: f"{value:.6g}" for name, value in evaluated.items() if name != "step" and _is_number(value)}
        parts += [f"## Evaluation at step {evaluated['step']}", _table("Metric", "Value", numbers)]
    prints = {text: f"`{metadata[name]}`" for name, text in _FINGERPRINTS.items() if metadata.get(name)}
    if prints:
        parts += ["## Fingerprints", _table("SHA-256 of", "", prints)]
    (folder / FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def evaluation(log_history: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The last evaluation in a trainer's log, as `step` and metrics by name; None if there was none."""
    found = [entry for entry in log_history if "eval_loss" in entry]
    if not found:
        return None
    metrics = {name: value for name, value in found[-1].items() if name.startswith("eval_") and name not in _RATES}
    return {"step": found[-1]["step"], **metrics}


def licence_of(base: str) -> dict[str, str]:
    """The licence fields of a card, from the base's own card or config on this machine; otherwise unknown.

    Args:
        base: directory or hub name.
    """
    for read in (_matter_of_card, _config):
        found = read(base)
        fields = {name: found[name] for name, form in _LICENCE_FIELDS.items() if form.fullmatch(str(found.get(name, "")))}
        if "license" in fields:
            return fields
    return dict(_UNKNOWN_LICENCE)


def _matter_of_card(base: str) -> dict[str, Any]:
    path = model_files.on_disk(base, FILE)
    # A stranger's YAML can raise anything.
    with suppress(Exception):
        if path and path.stat().st_size <= _MOST_BYTES:
            return metadata_load(path) or {}
    return {}


def _config(base: str) -> dict[str, Any]:
    path = model_files.on_disk(base, "config.json")
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return found if isinstance(found, dict) else {}
    return {}


def _front_matter(metadata: Mapping[str, Any], licence: Mapping[str, str], *, is_adapter: bool, is_merged: bool) -> str:
    lora = ["lora"] if is_adapter or is_merged else []
    fields: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [metadata["training_method"], "preference-optimization", *lora, "trl", "tafdil"],
        **licence,
    }
    # The hub refuses a card if its base's name does not have the hub's form.
    with suppress(HFValidationError):
        validate_repo_id(metadata["model_name"])
        fields = {"base_model": metadata["model_name"], **fields}
        fields["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return f"---\n{ModelCardData(**fields).to_yaml().strip()}\n---"


def _title(metadata: Mapping[str, Any], step: int | None, *, is_adapter: bool, is_merged: bool) -> str:
    method, base = metadata["training_method"].upper(), _name(metadata["model_name"])
    what = "LoRA adapter" if is_adapter else "merged model" if is_merged else "model"
    at = "" if step is None else f", checkpoint of step {step}"
    return f"{method} {what} of {base}{at}"


def _name(model_name: str) -> str:
    """A model's name, or the last part of a directory."""
    path = PurePath(model_name)
    return (path.name if path.is_absolute() else model_name).replace("`", "")


def _words(name: str) -> str:
    """A name on one line, as code."""
    return f"`{' '.join(name.split()).replace('`', '')}`"


def _facts(metadata: Mapping[str, Any], licence: Mapping[str, str], *, is_merged: bool) -> Iterable[str]:
    settings = SETTINGS_OF[metadata["training_method"]]
    method = f"{settings.title} ({settings.full_name})"
    yield f"Base: `{_name(metadata['model_name'])}`"
    yield f"Method: {method}, beta {metadata['beta']}, learning rate {metadata['learning_rate']}"
    yield f"Dtype: `{metadata['dtype']}`. In another one answers may differ."
    if metadata.get("load_in_4bit"):
        in_4bit = "and here added to the exact weights, so answers may differ" if is_merged else "as comparisons used it"
        yield f"Trained on the base in 4 bit (NF4), {in_4bit}"
    if data := metadata.get("data"):
        yield f"Data: {data['rows_trained_on']} rows trained on, {data['rows_validated_on']} for validation"
        for each in data.get("datasets", []):
            yield f"Dataset: {_words(each['name'])}, {each['rows_taken']} of its {each['rows_in_file']} rows"
    if effect := metadata.get("effect"):
        yield f"Effect of the training: {effect.replace('_', ' ')}"
    name = licence.get("license_name", licence["license"])
    yield "Licence: unknown; that of the base applies" if name == "unknown" else f"Licence: {name}, that of the base"
    yield "Trained with Tafdil and TRL"


def _how_to_load(metadata: Mapping[str, Any], *, is_adapter: bool) -> str:
    options = f'dtype="{metadata["dtype"]}"'
    lines = ["import peft, transformers" if is_adapter else "import transformers"]
    if is_adapter and metadata.get("load_in_4bit"):
        kind = 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True'
        lines += [
            "in_4bit = transformers.BitsAndBytesConfig(",
            f'    {kind}, bnb_4bit_compute_dtype="{metadata["dtype"]}"',
            ")",
        ]
        options += ", quantization_config=in_4bit"
    loader = "peft.AutoPeftModelForCausalLM" if is_adapter else "transformers.AutoModelForCausalLM"
    lines += [
        f'model = {loader}.from_pretrained(".", {options})',
        'tokenizer = transformers.AutoTokenizer.from_pretrained(".")',
    ]
    code = "\n".join(lines)
    where = "In the folder of these files, or with the name of the repository instead of the dot:"
    text = f"## Load it\n\n{where}\n\n```python\n{code}\n```"
    if is_adapter:
        text += (
            "\n\npeft loads the base by the name in `adapter_config.json`: from a folder of that name, the local cache or "
            "the hub. With the base elsewhere, load it with the same options and use "
            '`peft.PeftModel.from_pretrained(base, ".")`.'
        )
    return f"{text}\n\n{_how_to_ask(metadata)}"


def _how_to_ask(metadata: Mapping[str, Any]) -> str:
    if metadata.get("uses_chat_template", True):
        text = "Prompts are rendered by the tokenizer's chat template, with `add_generation_prompt=True`"
        if metadata.get("system_prompt"):
            text += ", after the system prompt that the metadata file holds"
    else:
        text = "Prompts are plain text, without a chat template"
    if stops := metadata.get("stop_tokens"):
        ids = ", ".join(str(stop["id"]) for stop in stops)
        text += f". An answer ends at one of the tokens `eos_token_id=[{ids}]`"
    return f"{text}. The most likely answer is that of `do_sample=False`."


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(first: str, second: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {first} | {second} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
