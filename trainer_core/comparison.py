"""The trained model's answer next to the reference's, with proof of which weights gave each.

Knows two models and one rendering; knows nothing of training, replies or jobs.
"""

import json
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from trainer_core import adapters, effect, generation_options
from trainer_core.acceleration import causal_of
from trainer_core.config import SETTINGS_OF, Reward
from trainer_core.errors import DataInvalid, ModelNotFound, ReferenceMismatch, SpecInvalid
from trainer_core.fingerprints import Remembered
from trainer_core.generation_options import DEFAULT_LENGTH
from trainer_core.models import Locate, answering_dtype, dtype_name, load_model, load_reference
from trainer_core.proof import Claim, Covers, Found, Sources, Witness
from trainer_core.reference import REFERENCE_ADAPTER, TRAINED_ADAPTER, FrozenView, check_adapter, model_of, side_of
from trainer_core.renderers import load_saved_renderer
from trainer_core.row_rules import comparable, text_of
from trainer_core.samples import repetition, said
from trainer_core.scoring import score
from trainer_core.small_batches import SmallBatches
from trainer_core.streaming import TextStreamer
from trainer_core.tokens import Messages, Renderer
from trainer_core.wording import rounded, say

# How far rounding may let two passes over the same weights differ, as a share of the largest logit.
_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE_ROUNDING = 0.03


@dataclass(frozen=True)
class Proof:
    """Evidence that two different models answered.

    Fingerprints are SHA-256 of the weights that answered, in the dtype of their files. The logit difference (largest,
    absolute) and the KL divergence KL(trained ‖ reference) (nats, mean) are over the prompt's positions.
    `function_sha256` covers all that the trained model's answers depend on; see `docs/artifacts.md`. `covers` is
    "tensors only" if an earlier version wrote the metadata, which recorded only that.
    """

    trained_fingerprint: str
    reference_fingerprint: str
    template_fingerprint: str
    max_logit_difference: float
    mean_kl: float
    function_sha256: str | None = None
    covers: Covers = "tensors only"

    @property
    def adapter_has_no_effect(self) -> bool:
        return self.max_logit_difference == 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "adapter_has_no_effect": self.adapter_has_no_effect}


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt.

    `preference_score` is σ(β · [r(trained answer) − r(reference answer)]) with r = log π(y|x) − log π_ref(y|x), averaged
    over tokens if the method's loss averages. It is the trained model's implicit reward, not an independent judgement.
    """

    prompt: str | Messages
    trained_response: str
    reference_response: str
    preference_score: float
    seed: int | None
    proof: Proof
    dtype: str | None = None
    """The dtype in which both answers were computed, as configurations write it: `bfloat16`."""
    margin: float = 0.0
    """β · [r(trained answer) − r(reference answer)], of which `preference_score` is the sigmoid. Above 0, the trained model
    prefers its own answer."""
    flags: tuple[str, ...] = ()
    """What is wrong with the trained answer whatever its reward: `repetition`, `foreign_script`, `length_ratio`; see
    `effect.signs`."""

    @property
    def texts_differ(self) -> bool:
        return comparable(self.trained_response) != comparable(self.reference_response)

    def responses(self) -> dict[str, Any]:
        """The part of a reply that every method shares."""
        return {
            "prompt": self.prompt,
            "trained_model_response": self.trained_response,
            "reference_model_response": self.reference_response,
            "seed": self.seed,
            "dtype": self.dtype,
            "proof": self.proof.as_dict(),
            "margin": self.margin if math.isfinite(self.margin) else None,
            "flags": list(self.flags),
        }


@dataclass(frozen=True)
class _Answers:
    """Token ids of both answers, and the logits (vocabulary,) float32 from which each began."""

    trained: list[int]
    reference: list[int]
    trained_start: Tensor
    reference_start: Tensor


class ModelPair:
    """A trained model and its reference, ready to answer.

    Args:
        reference: a `FrozenView` of the policy, so that both sides answer in one batch, or a separate model. With DoRA,
            which peft cannot switch within a batch, the sides answer one after the other.
        claim: what the models must be, according to a run's metadata; None if nothing is known.
        sources: where the weights were loaded from.
        adapter: the trained adapter's name in a LoRA model, which may also hold those of other runs.
        remembered: fingerprints of the weights that pairs share.
        reward: how the preference score is computed.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        renderer: Renderer,
        beta: float,
        claim: Claim | None = None,
        *,
        sources: Sources | None = None,
        adapter: str = TRAINED_ADAPTER,
        remembered: Remembered | None = None,
        reward: Reward = "summed",
    ) -> None:
        self.policy, self.reference, self.renderer, self.beta = policy, reference, renderer, beta
        self.reward: Reward = reward
        self.adapter = adapter
        trained = adapter if hasattr(policy, "peft_config") else None
        self._witness = Witness(trained, claim, sources, remembered)

    def compare(
        self,
        prompt: str | Messages,
        max_new_tokens: int = DEFAULT_LENGTH,
        temperature: float | None = None,
        seed: int | None = None,
        tell: Callable[[str, str], None] | None = None,
        *,
        wanted: Sequence[str] = (),
        **generation: Any,
    ) -> Comparison:
        """Answers from both sides. A temperature above 0 samples; without a seed, one is drawn and returned.

        Args:
            wanted: good answers to the prompt, if there are any; what is like them is not flagged.
            max_new_tokens: the default is lowered to what fits in the model's context.
            tell: called with the trained model's text so far and the reference's, several times a second.

        Raises:
            SpecInvalid: an option is invalid.
            DataInvalid: the prompt is empty, or too long for the model.
            ReferenceMismatch: a side is not the function that its metadata claims, or other weights answered.
        """
        generation = generation_options.checked({**generation, "temperature": temperature, "seed": seed})
        temperature, seed = generation.pop("temperature", 0.0), generation.pop("seed", None)
        ids = self._prompt_ids(prompt)
        longest = getattr(self.policy.config, "max_position_embeddings", None)
        max_new_tokens = generation_options.fitting(max_new_tokens, len(ids), longest)
        if generation.pop("do_sample", False) and not temperature:
            temperature = 1.0
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature:
            seed = seed if seed is not None else int(torch.randint(2**31 - 1, ()).item())
            sampling = {"do_sample": True, "temperature": temperature}
        else:
            seed = None
        was_training = self.policy.training
        self.policy.eval()
        try:
            if hasattr(self.policy, "peft_config"):
                check_adapter(self.policy, self.adapter, "trained")
            found = self._witness.check(self.policy, self.reference, self.renderer, self.beta)
            with torch.no_grad(), torch.random.fork_rng():
                if seed is not None:
                    torch.manual_seed(seed)
                with _hooks_as_they_were(self.policy), _computed_in(self.policy) as dtypes:
                    answers = self._generate(ids, {"max_new_tokens": max_new_tokens, **sampling, **generation}, tell)
                proof = self._prove(ids, answers, found)
                margin = self._margin(ids, answers)
        finally:
            self.policy.train(was_training)
        texts = self.renderer.response(answers.trained), self.renderer.response(answers.reference)
        flags = self._flags(prompt, texts, answers, wanted)
        return Comparison(
            prompt, *texts, _sigmoid(margin), seed, proof, dtype_name(dtypes[0]), margin=margin, flags=tuple(flags)
        )

    def has_room(self, prompt: str | Messages, max_new_tokens: int) -> bool:
        """Whether the model's context holds a prompt and an answer of this length."""
        longest = getattr(self.policy.config, "max_position_embeddings", None)
        return longest is None or len(self._prompt_ids(prompt)) + max_new_tokens <= longest

    def _prompt_ids(self, prompt: str | Messages) -> list[int]:
        ids = self.renderer.prompt_ids(prompt)
        if not ids:
            raise DataInvalid.at("prompt", say("prompt_empty"))
        return ids

    def _generate(self, ids: list[int], options: dict[str, Any], tell: Callable[[str, str], None] | None = None) -> _Answers:
        options = {
            "pad_token_id": self.renderer.tokenizer.pad_token_id,
            "eos_token_id": self.renderer.stop.ids,
            **options,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        sides = self._sides()
        if sides:
            if tell:
                options["streamer"] = TextStreamer(self.renderer, lambda texts: tell(*texts))
            with SmallBatches():
                both = self.policy.generate(**self._inputs([ids, ids]), adapter_names=sides, **options)
            # A beam search has one row of logits per beam.
            starts = both.logits[0][:: options.get("num_beams") or 1]
            rows = list(both.sequences)
        else:
            outputs: list[Any] = []
            for model, side in ((self.policy, nullcontext()), (model_of(self.reference), side_of(self.reference))):
                if tell:
                    before = [self.renderer.response(output.sequences[0][len(ids) :].tolist()) for output in outputs]
                    options["streamer"] = TextStreamer(
                        self.renderer, lambda texts, before=before: tell(*[*before, *texts, ""][:2])
                    )
                with side:
                    outputs.append(model.generate(**self._inputs([ids]), **options))
            rows, starts = [output.sequences[0] for output in outputs], [output.logits[0][0] for output in outputs]
        answers = [self.renderer.stop.up_to_end(row[len(ids) :].tolist()) for row in rows]
        return _Answers(answers[0], answers[1], starts[0].float(), starts[1].float())

    def _sides(self) -> list[str] | None:
        """peft's names for both sides, to answer in one batch; None if they need two.

        peft refuses batches with several adapters if one is DoRA, whose weights are scaled as a whole.
        """
        if not isinstance(self.reference, FrozenView):
            return None
        sides = [self.adapter, self.reference.adapter or "__base__"]
        known = self.policy.peft_config
        return None if any(getattr(known.get(side), "use_dora", False) for side in sides) else sides

    def _inputs(self, rows: list[list[int]]) -> dict[str, Tensor]:
        ids = torch.tensor(rows, device=self.policy.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _flags(self, prompt: str | Messages, texts: tuple[str, str], answers: _Answers, wanted: Sequence[str]) -> list[str]:
        """Signs of a broken answer that the reference's does not have."""
        trained, reference = (
            effect.Answers([text], [len(ids) if text else 0], [repetition(ids)])
            for text, ids in (
                (said(text, self.renderer.thoughts_tag), ids)
                for text, ids in zip(texts, (answers.trained, answers.reference), strict=True)
            )
        )
        lengths = [len(self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in wanted]
        found = effect.compared([text_of(prompt)], reference, trained, effect.Answers(wanted, lengths, []))
        return effect.signs(found)

    def _margin(self, ids: list[int], answers: _Answers) -> float:
        own = {"trained": [answers.trained], "reference": [answers.reference]}
        scores = score(self.policy, self.reference, [ids], own)
        trained, reference = (scores[side].rewards(self.beta, self.reward) for side in ("trained", "reference"))
        return (trained - reference).item()

    def _prove(self, ids: list[int], answers: _Answers, found: Found) -> Proof:
        model = model_of(self.reference)
        inputs = self._inputs([ids])
        trained = self.policy(**inputs).logits[0].float()
        with side_of(self.reference):
            reference = model(**inputs).logits[0].float()
        self._check_start("trained", answers.trained_start, trained[-1], reference[-1])
        self._check_start("reference", answers.reference_start, reference[-1], trained[-1])
        log_p, log_q = trained.log_softmax(-1), reference.log_softmax(-1)
        return Proof(
            trained_fingerprint=found.trained,
            reference_fingerprint=found.reference,
            template_fingerprint=self.renderer.fingerprint,
            max_logit_difference=(trained - reference).abs().max().item(),
            mean_kl=(log_p.exp() * (log_p - log_q)).sum(-1).mean().clamp(min=0).item(),
            function_sha256=found.proof["function_sha256"] if self._witness.claim.covers == "function" else None,
            covers=self._witness.claim.covers,
        )

    def _check_start(self, side: str, start: Tensor, own: Tensor, other: Tensor) -> None:
        """An answer must have begun from the logits of its own side's forward pass."""
        rounding = _ROUNDING.get(self.policy.dtype, _COARSE_ROUNDING) * own.abs().max().item()
        error, error_of_other = (start - own).abs().max().item(), (start - other).abs().max().item()
        if error > rounding and error_of_other < error:
            differences = {"own": rounded(error), "other": rounded(error_of_other)}
            raise ReferenceMismatch(say("answer_not_of_weights", kind=say(f"kind.{side}"), **differences))


def _sigmoid(value: float) -> float:
    return torch.sigmoid(torch.tensor(value, dtype=torch.float64)).item()


@contextmanager
def _hooks_as_they_were(model: Any) -> Generator[None]:
    """Removes the hooks that peft leaves behind when a batch with two sides fails, and explains the failure.

    The hooks would make every later pass of the model fail.
    """
    before = {module: set(module._forward_pre_hooks) for module in model.modules()}
    try:
        yield
    except BaseException as error:
        for module, known in before.items():
            for key in set(module._forward_pre_hooks) - known:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        if isinstance(error, ValueError | TypeError):
            raise SpecInvalid(say("generation_refused", problem=str(error).splitlines()[0])) from error
        raise


@contextmanager
def _computed_in(model: Any) -> Generator[list[torch.dtype]]:
    """Collects the dtypes of the output layer's logits: under autocast they differ from the weights' dtypes."""
    found: list[torch.dtype] = []
    head = causal_of(model).get_output_embeddings()
    hook = head.register_forward_hook(lambda *call: found.append(call[-1].dtype))
    try:
        yield found
    finally:
        hook.remove()


class Bases:
    """Base models, each loaded once, that serve the adapters of several runs. `load_pair` fills it."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, torch.dtype, bool], tuple[PeftModel, Remembered]] = {}

    def adapted(self, path: str, dtype: torch.dtype, in_4bit: bool, adapter: Path, name: str) -> tuple[Any, Remembered]:
        """The base with an adapter under a name."""
        key = path, dtype, in_4bit
        if key not in self._models:
            base = load_model(path, dtype, in_4bit)
            self._models[key] = adapters.load(base, str(adapter), name), Remembered()
        else:
            adapters.load(self._models[key][0], str(adapter), name)
        policy, remembered = self._models[key]
        return policy.eval().requires_grad_(False), remembered

    def release(self, adapter: str) -> None:
        """Drops an adapter with its reference, and a base with its last adapter."""
        for key, (policy, _) in list(self._models.items()):
            own = {adapter, _reference_name(adapter)} & set(policy.peft_config)
            if own == set(policy.peft_config):
                del self._models[key]
                continue
            for name in own:
                policy.delete_adapter(name)


def _reference_name(adapter: str) -> str:
    """The name of the frozen adapter that is the reference of another one."""
    return REFERENCE_ADAPTER if adapter == TRAINED_ADAPTER else f"{adapter}-{REFERENCE_ADAPTER}"


def load_pair(
    directory: Path, locate: Locate, bases: Bases | None = None, adapter: str = TRAINED_ADAPTER
) -> tuple[str, ModelPair]:
    """A saved model with its reference, and its method's name. Raises `ModelNotFound` if it is incomplete.

    Both use the dtype that the base's config.json names, as they will for whoever downloads the result, and not the one in
    which they trained on this machine.

    Args:
        bases: shared base models; the pair's adapter is named `adapter` there.
    """
    found = list(directory.glob("*_metadata.json"))
    if len(found) != 1:
        raise ModelNotFound(say("trained_model_missing", directory=directory.name))
    metadata = json.loads(found[0].read_text(encoding="utf-8"))
    path = locate(metadata["model_name"]) if metadata["use_lora"] else str(directory)
    dtype = answering_dtype(path)
    renderer = load_saved_renderer(directory, metadata, path)
    remembered = Remembered()
    if metadata["use_lora"]:
        policy, remembered = (bases or Bases()).adapted(path, dtype, metadata["load_in_4bit"], directory, adapter)
        if (directory / REFERENCE_ADAPTER).is_dir():
            adapters.load(policy, str(directory / REFERENCE_ADAPTER), _reference_name(adapter))
        policy.set_adapter(adapter)
    else:
        policy = load_model(path, dtype).eval()
    if metadata["reference"] == "model":
        reference: Any = load_reference(locate(metadata["ref_model_name"]), dtype, metadata["ref_load_in_4bit"])
        # The base's fingerprint is shared with pairs that have other references.
        remembered = Remembered() if metadata["use_lora"] else remembered
    else:
        reference = FrozenView(policy, _reference_name(adapter) if metadata["reference"] == "adapter" else None)
    sources = Sources(
        trained=locate(metadata["model_name"]) if metadata["use_lora"] else str(directory),
        reference=locate(metadata["ref_model_name"]) if metadata["reference"] == "model" else None,
    )
    claim = Claim.of(metadata)
    pair = ModelPair(
        policy,
        reference,
        renderer,
        metadata["beta"],
        claim,
        sources=sources,
        adapter=adapter,
        remembered=remembered,
        reward=SETTINGS_OF[metadata["training_method"]].reward,
    )
    return metadata["training_method"], pair
