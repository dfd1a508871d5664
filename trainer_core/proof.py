"""Proves which function answers: the weights, and everything else on which its answers depend.

Metadata stores it as `proof`; comparisons and merges check it against what they loaded. Metadata of earlier versions has no
proof, so only its weights' fingerprints are compared, computed as those versions did.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer

from trainer_core.acceleration import causal_of
from trainer_core.errors import Detail, ModelRefused, ReferenceMismatch
from trainer_core.fingerprints import (
    Remembered,
    adapter_tensors,
    adapter_tensors_of_0_1,
    base_tensors,
    fingerprint,
    is_quantized,
    side_fingerprint,
)
from trainer_core.models import weights_dtype
from trainer_core.reference import FrozenView, model_of
from trainer_core.stored_weights import fingerprint_of_files, in_dtype
from trainer_core.tokens import Renderer
from trainer_core.wording import is_known, say

VERSION = 1
Covers = Literal["function", "tensors only"]

# Fields of a model's configuration that change no answer, or are elsewhere in the proof.
_NOT_CONFIG = {"architectures", "dtype", "torch_dtype", "use_cache", "quantization_config"}
_NAMED = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
# Options that a comparison sets itself, or that change no answer.
_NOT_GENERATION = {"do_sample", "temperature", "max_length", "max_new_tokens", "return_dict_in_generate", "use_cache"}


@dataclass(frozen=True)
class Sources:
    """Directories or hub names from which a pair's weights were loaded; None if they exist only in memory.

    Attributes:
        trained: for the trained model without its adapter.
        reference: for a reference that is a separate model.
    """

    trained: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Claim:
    """What a run's metadata says about its models.

    Attributes:
        trained, reference: fingerprints of the weights; None if they are not known or not comparable.
        proof: the structure described in `docs/artifacts.md`; None in metadata of earlier versions.
        dtype: the dtype in which earlier versions computed fingerprints.
        shown: fields outside `proof` that repeat its content.
    """

    trained: str | None = None
    reference: str | None = None
    proof: dict[str, Any] | None = None
    dtype: torch.dtype | None = None
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "Claim":
        """The claim in metadata. Raises `ModelRefused` if a later version wrote the proof."""
        proof = metadata.get("proof")
        if proof is None:
            # 4-bit packing may differ by a bit between kinds of device.
            return cls(
                None if metadata["load_in_4bit"] else metadata["weights_sha256"],
                None if metadata["ref_load_in_4bit"] else metadata["reference_sha256"],
                dtype=weights_dtype(metadata["use_lora"], metadata["precision"]),
            )
        if not isinstance(proof, dict) or proof.get("version") != VERSION:
            version = proof.get("version") if isinstance(proof, dict) else proof
            raise ModelRefused.at("proof", say("proof_version", version=repr(version)))
        return cls(
            metadata["weights_sha256"],
            metadata["reference_sha256"],
            proof,
            shown={
                **{name: metadata[name] for name in ("beta", "template_sha256", "special_tokens_in_text")},
                **({"base_sha256": metadata["base_weights_sha256"]} if metadata["use_lora"] else {}),
            },
        )

    @property
    def covers(self) -> Covers:
        return "tensors only" if self.dtype else "function"


@dataclass(frozen=True)
class Found:
    """The models that are loaded: fingerprints of both sides' weights, and the proof."""

    trained: str
    reference: str
    proof: dict[str, Any]


class Witness:
    """Identifies the function of a loaded model, and compares it with a claim.

    Args:
        adapter: the trained adapter's name; None without LoRA.
        remembered: fingerprints that models share.
    """

    def __init__(
        self,
        adapter: str | None,
        claim: Claim | None = None,
        sources: Sources | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        self.adapter, self.claim, self.sources = adapter, claim or Claim(), sources or Sources()
        self.remembered = remembered or Remembered()

    def check(self, policy: Any, reference: Any, renderer: Renderer, beta: float) -> Found:
        """Both sides, as they are in memory now. Raises `ReferenceMismatch`, naming what differs from the claim."""
        base = self._base("trained", policy, self.sources.trained)
        view = reference if isinstance(reference, FrozenView) else None
        other = base if view else self._base("reference", model_of(reference), self.sources.reference)
        adapter = view.adapter if view else None
        found = Found(
            self._weights(base, policy, self.adapter),
            self._weights(other, policy if view else reference, adapter),
            {
                **function_of(side_of_proof(policy, self.adapter, base), renderer, beta),
                "reference": reference_of_proof(policy, reference, other),
            },
        )
        self._compare(found.proof, found.trained, self.claim.trained, "trained")
        self._compare(found.proof["reference"], found.reference, self.claim.reference, "reference")
        check_proof(self.claim, found.proof)
        return found

    def check_trained(self, policy: Any, renderer: Renderer, beta: float, *, ignore: frozenset[str] = frozenset()) -> str:
        """As `check`, without the reference. Returns the fingerprint of the trained weights.

        Args:
            ignore: fields of the proof to skip.
        """
        base = self._base("trained", policy, self.sources.trained)
        weights = self._weights(base, policy, self.adapter)
        found = function_of(side_of_proof(policy, self.adapter, base), renderer, beta)
        self._compare(found, weights, self.claim.trained, "trained")
        check_proof(self.claim, found, ignore=ignore | {"reference"})
        return weights

    def _base(self, side: str, model: Any, source: str | None) -> str:
        return base_fingerprint(self.remembered, side, model, source, self.claim.dtype)

    def _weights(self, base: str, model: Any, adapter: str | None) -> str:
        own = list((adapter_tensors_of_0_1 if self.claim.dtype else adapter_tensors)(model, adapter))
        return side_fingerprint(base, fingerprint(own) if own else None)

    def _compare(self, found: Mapping[str, Any], weights: str, claimed: str | None, side: str) -> None:
        if claimed is None or weights == claimed:
            return
        reasons = [say("proof_fingerprints", now=weights[:12], then=claimed[:12])]
        if proof := self.claim.proof if side == "trained" else (self.claim.proof or {}).get("reference"):
            names = [name for name in ("base_sha256", "adapter_sha256") if proof.get(name) != found.get(name)]
            reasons = [say("proof_weights_differ", what=_words(name)) for name in names] or reasons
        raise ReferenceMismatch(say("weights_not_trained", kind=say(f"kind.{side}"), reasons=reasons))


def base_fingerprint(
    remembered: Remembered, side: str, model: Any, source: str | None, dtype: torch.dtype | None = None
) -> str:
    """The fingerprint of a model without adapters: that of its files if it has some, which the weights in memory must equal.

    Args:
        side: `trained` or `reference`; part of the key under which it is remembered.
        source: directory or hub name from which it was loaded.
        dtype: the dtype in which earlier versions computed it; default: that of the files.

    Raises:
        ReferenceMismatch, ModelRefused: see `stored_weights`.
    """

    def take(live: list[tuple[str, torch.Tensor]]) -> str:
        if source is None:
            return fingerprint((name, in_dtype(tensor, dtype)) for name, tensor in live)
        return fingerprint_of_files(live, source, say(f"kind.{side}"), dtype=dtype)

    return remembered.fingerprint(f"{side} of {source} in {dtype}", base_tensors(model), take)


# -- the structure


def side_of_proof(model: Any, adapter: str | None, base: str) -> dict[str, Any]:
    """Everything on which one side's answers depend.

    Args:
        adapter: the active one; None if there is none.
        base: fingerprint of the weights without adapters.
    """
    causal = causal_of(model)
    return {
        **_weights_of_proof(model, adapter, base),
        "config": _plain(causal.config.to_diff_dict(), _NOT_CONFIG | _NAMED),
        "generation": _plain(causal.generation_config.to_diff_dict(), _NOT_GENERATION | _NAMED),
    }


def fingerprint_of(side: dict[str, Any] | None) -> str | None:
    """The fingerprint of a side's weights, from the proof's part about it; None if nothing is known."""
    return side_fingerprint(side["base_sha256"], side["adapter_sha256"]) if side else None


def reference_of_proof(policy: Any, reference: Any, base: str) -> dict[str, Any]:
    """Everything on which a reference's answers depend; a view of the policy shares its configuration and settings.

    Args:
        base: fingerprint of the reference's weights without adapters.
    """
    if isinstance(reference, FrozenView):
        return _weights_of_proof(policy, reference.adapter, base)
    return side_of_proof(reference, None, base)


def _weights_of_proof(model: Any, adapter: str | None, base: str) -> dict[str, Any]:
    own = list(adapter_tensors(model, adapter))
    return {
        "base_sha256": base,
        "adapter_sha256": fingerprint(own) if own else None,
        "scaling": scaling_of(model, adapter),
        "variants": variants_of(model, adapter) if adapter else [],
        "load_in_4bit": any(is_quantized(tensor) for tensor in model.parameters()),
    }


def scaling_of(model: Any, adapter: str | None) -> float | dict[str, float] | None:
    """The factor of each layer on its adapter's output: one number if all layers agree, otherwise by layer."""
    found = {
        name.removeprefix("base_model.model."): layer.scaling[adapter]
        for name, layer in model.named_modules()
        if adapter and isinstance(layer, LoraLayer) and adapter in layer.scaling
    }
    return next(iter(found.values())) if len(set(found.values())) == 1 else found or None


def variants_of(model: Any, adapter: str | None = None) -> list[str]:
    """peft's names for variants of LoRA in the layers: DoRA, or an adapter that is active only after some tokens.

    Args:
        adapter: the adapter to look at; None: all adapters.
    """
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    found = (variant for layer in layers for name, variant in layer.lora_variant.items() if adapter in (None, name))
    return sorted({type(variant).__name__ for variant in found})


def function_of(trained: dict[str, Any], renderer: Renderer, beta: float) -> dict[str, Any]:
    """The proof of a trained function: its side (see `side_of_proof`), and how it is prompted and scored."""
    content = {
        "version": VERSION,
        **trained,
        "template_sha256": renderer.fingerprint,
        "tokenizer_sha256": renderer.vocabulary_fingerprint,
        "special_tokens_in_text": renderer.special_tokens_in_text,
        "stop_ids": sorted(renderer.stop.ids),
        "beta": beta,
    }
    return {**content, "function_sha256": _sealed(content)}


def _sealed(proof: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a proof's content about the trained function."""
    content = {name: value for name, value in proof.items() if name not in ("reference", "function_sha256")}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def check_proof(claim: Claim, found: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> None:
    """Raises `ReferenceMismatch`, naming each field that differs, unless a function is the claimed one."""
    if claim.proof is None:
        return
    different = [one for one in _differences(claim.proof, found) if one[0] not in ignore]
    different += _differences(claim.shown, found)
    sealed = _sealed(claim.proof)
    if not different and claim.proof.get("function_sha256") != sealed:
        different = [("function_sha256", claim.proof.get("function_sha256"), sealed)]
    if different:
        reasons = [
            say("proof_field_differs", what=_words(name), now=_short(now), then=_short(then))
            for name, then, now in different
        ]
        details = [Detail(name, reason) for (name, _, _), reason in zip(different, reasons, strict=True)]
        raise ReferenceMismatch(say("model_not_trained", reasons=list(dict.fromkeys(reasons))), details)


def _differences(claimed: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names of fields that differ, with the claimed and the found value."""
    for name, then in claimed.items():
        now = found.get(name)
        if f"{prefix}{name}" == "reference":
            # A reference is unknown if no process held it at the end of the run.
            if then is not None and now is not None:
                yield from _differences(then, now, "reference.")
        elif name == "config" and isinstance(then, dict) and isinstance(now, dict):
            # Versions of transformers differ in which settings they know.
            known = {one: value for one, value in now.items() if one in then}
            if _canonical({one: then[one] for one in known}) != _canonical(known):
                yield from ((f"{prefix}config.{one}", then[one], known[one]) for one in known if then[one] != known[one])
        elif name != "function_sha256" and _canonical(then) != _canonical(now):
            yield f"{prefix}{name}", then, now


def _words(name: str) -> str:
    own, _, setting = name.removeprefix("reference.").partition(".")
    words: str = say(f"proof.{own}") if is_known(f"proof.{own}") else own
    words = say("proof_setting", what=words, setting=setting) if setting else words
    return say("proof_of_reference", what=words) if name.startswith("reference.") else words


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    limit = 12 if isinstance(value, str) else 100
    return text if len(text) <= limit else f"{text[:limit]}…"


def _plain(settings: Any, without: set[str]) -> Any:
    """Settings as JSON values, without some names at any depth."""
    if isinstance(settings, dict):
        return {
            str(name): _plain(value, without)
            for name, value in settings.items()
            if name not in without and not str(name).startswith(("_", "output_"))
        }
    if isinstance(settings, set | frozenset):
        return sorted(_plain(value, without) for value in settings)
    if isinstance(settings, list | tuple):
        return [_plain(value, without) for value in settings]
    return settings if isinstance(settings, str | int | float | bool | None) else str(settings)


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False)
