"""Full weights from a base and the adapter that was trained on it."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from trainer_core import adapters
from trainer_core.errors import ModelNotFound, ReferenceMismatch
from trainer_core.fingerprints import base_tensors, fingerprint
from trainer_core.models import Locate, load_model, load_tokenizer, same_name, weights_dtype
from trainer_core.reference import TRAINED_ADAPTER

_PROMPT = "ما عاصمة مصر؟"


def merge(directory: Path, target: Path, locate: Locate = same_name) -> dict[str, Any]:
    """Writes a model that needs no adapter: weights, tokenizer, metadata and `merged.json`.

    A base that trained in 4 bit is loaded whole: the merged model is the adapter on the exact weights, and its answers
    differ from the trained one's as the 4-bit base's do.

    Args:
        directory: a result of a training with LoRA.
        target: a directory that does not exist; it appears when all of it is written.
        locate: from the base's name to what is loaded.

    Returns:
        What `merged.json` holds: `weights_sha256`, `dtype`, and `max_logit_difference` between the model with its adapter
        and the merged one, for a fixed prompt: what merging rounded.

    Raises:
        ModelNotFound, ModelRefused: the training or its base is not there or cannot be loaded.
        ReferenceMismatch: the base on disk is not the one that was trained on.
    """
    found = list(directory.glob("*_metadata.json"))
    if len(found) != 1:
        raise ModelNotFound(f"no trained model in {directory.name}: its metadata file is missing")
    metadata = json.loads(found[0].read_text(encoding="utf-8"))
    dtype = weights_dtype(True, metadata["precision"])
    base = load_model(locate(metadata["model_name"]), dtype)
    if not metadata["load_in_4bit"] and fingerprint(base_tensors(base)) != metadata["base_weights_sha256"]:
        raise ReferenceMismatch(f"the weights of {metadata['model_name']!r} are not those that the adapter was trained on")
    policy = adapters.load(base, str(directory), TRAINED_ADAPTER).eval()
    tokenizer = load_tokenizer(str(directory))
    ids = torch.tensor([tokenizer(_PROMPT)["input_ids"]], device=base.device)
    with torch.no_grad():
        before = policy(input_ids=ids).logits.float()
        merged: Any = policy.merge_and_unload(safe_merge=True)
        after = merged(input_ids=ids).logits.float()
    told = {
        "base": metadata["model_name"],
        "dtype": str(dtype).removeprefix("torch."),
        "weights_sha256": fingerprint(base_tensors(merged)),
        "max_logit_difference": (after - before).abs().max().item(),
    }
    staged = target.with_name(f".{target.name}")
    shutil.rmtree(staged, ignore_errors=True)
    merged.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    shutil.copy2(found[0], staged)
    (staged / "merged.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    staged.rename(target)
    return told
