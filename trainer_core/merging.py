"""Full weights from a base and the adapter that was trained on it."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from trainer_core import adapters, model_card
from trainer_core.errors import ModelNotFound
from trainer_core.fingerprints import base_tensors, fingerprint
from trainer_core.models import Locate, answering_dtype, dtype_name, load_model, same_name, weights_dtype
from trainer_core.proof import Claim, Sources, Witness
from trainer_core.reference import TRAINED_ADAPTER
from trainer_core.renderers import load_saved_renderer
from trainer_core.wording import say

_PROMPT = "ما عاصمة مصر؟"
# A base that trained in 4 bit is merged in full precision.
_IGNORED = frozenset({"load_in_4bit"})


def merge(directory: Path, target: Path, locate: Locate = same_name) -> dict[str, Any]:
    """Writes a model that needs no adapter: weights, tokenizer, metadata and `merged.json`.

    A base that trained in 4 bit is loaded in full precision. The merged model is the adapter on the exact weights, so its
    answers differ from the trained model's as much as the 4-bit base's do.

    Args:
        directory: the result of a run with LoRA.
        target: a directory that does not exist; it appears once all of it is written.
        locate: maps the base's name to what is loaded.

    Returns:
        The contents of `merged.json`: `weights_sha256`, `dtype`, `covers` (what was proved about base and adapter before
        merging, as in a comparison's proof), and `max_logit_difference` between the model with its adapter and the merged
        one, for a fixed prompt: the rounding error of merging.

    Raises:
        ModelNotFound, ModelRefused: the result or its base is missing or cannot be loaded.
        ReferenceMismatch: base, adapter or anything else that answers depend on differs from the end of the run.
    """
    found = list(directory.glob("*_metadata.json"))
    if len(found) != 1:
        raise ModelNotFound(say("trained_model_missing", directory=directory.name))
    metadata = json.loads(found[0].read_text(encoding="utf-8"))
    path, claim = locate(metadata["model_name"]), Claim.of(metadata)
    # As exact as the trained model, and as the one that answers comparisons.
    dtype = torch.promote_types(weights_dtype(True, metadata["precision"]), answering_dtype(path))
    base = load_model(path, dtype)
    policy = adapters.load(base, str(directory), TRAINED_ADAPTER).eval()
    renderer = load_saved_renderer(directory, metadata, path)
    Witness(TRAINED_ADAPTER, claim, Sources(path)).check_trained(policy, renderer, metadata["beta"], ignore=_IGNORED)
    tokenizer = renderer.tokenizer
    _untie(policy)
    ids = torch.tensor([tokenizer(_PROMPT)["input_ids"]], device=base.device)
    with torch.no_grad():
        before = policy(input_ids=ids).logits.float()
        merged: Any = policy.merge_and_unload(safe_merge=True)
        after = merged(input_ids=ids).logits.float()
    told = {
        "covers": claim.covers,
        "base": metadata["model_name"],
        "dtype": dtype_name(dtype),
        "weights_sha256": fingerprint(base_tensors(merged)),
        "max_logit_difference": (after - before).abs().max().item(),
    }
    staged = target.with_name(f".{target.name}")
    shutil.rmtree(staged, ignore_errors=True)
    merged.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    shutil.copy2(found[0], staged)
    model_card.write(
        staged, {**metadata, "dtype": told["dtype"], "merged_sha256": told["weights_sha256"]}, path, merged=True
    )
    (staged / "merged.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    staged.rename(target)
    return told


def _untie(policy: Any) -> None:
    """Unties the output layer from embeddings that the adapter changes.

    The adapter changes only the model's input. Merged into shared weights it would change the output, too.
    """
    causal = policy.get_base_model()
    embeddings, output = causal.get_input_embeddings(), causal.get_output_embeddings()
    if hasattr(embeddings, "lora_embedding_A") and output.weight is embeddings.get_base_layer().weight:
        output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)
        causal.config.tie_word_embeddings = False
