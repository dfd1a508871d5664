"""The trained model's answer next to the reference's, with proof of which weights gave each.

Knows two models and one rendering; knows nothing of training, methods' replies or jobs.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer_core.errors import ModelNotFound
from trainer_core.scoring import adapter_off, score
from trainer_core.tokens import Messages, Renderer


@dataclass(frozen=True)
class Proof:
    """What shows that two different models answered.

    Fingerprints are SHA-256 of the tensors that answered. The logit difference (largest, absolute) and the KL divergence
    KL(trained ‖ reference) (nats, mean over positions) are over the prompt's positions.
    """

    trained_fingerprint: str
    reference_fingerprint: str
    template_fingerprint: str
    max_logit_difference: float
    mean_kl: float

    @property
    def adapter_has_no_effect(self) -> bool:
        return self.max_logit_difference == 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "adapter_has_no_effect": self.adapter_has_no_effect}


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt.

    `preference_score` is σ(β · [r(trained answer) − r(reference answer)]) with r = log π(y|x) − log π_ref(y|x): the trained
    model's own implicit reward, not an independent judgement.
    """

    prompt: str | Messages
    trained_response: str
    reference_response: str
    preference_score: float
    seed: int | None
    proof: Proof

    def responses(self) -> dict[str, Any]:
        """The part of a reply that every method shares."""
        return {
            "prompt": self.prompt,
            "trained_model_response": self.trained_response,
            "reference_model_response": self.reference_response,
            "seed": self.seed,
            "proof": self.proof.as_dict(),
        }


class ModelPair:
    """A trained model and its reference, ready to answer.

    `reference` None: the reference is the policy's own base with the adapter off, so both sides answer in one batch.
    """

    def __init__(self, policy: Any, reference: Any | None, renderer: Renderer, beta: float) -> None:
        self.policy, self.reference, self.renderer, self.beta = policy, reference, renderer, beta

    def compare(
        self,
        prompt: str | Messages,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
        **generation: Any,
    ) -> Comparison:
        """Answers by both sides. A temperature above 0 samples; without a seed one is drawn, and told in the result."""
        ids = self.renderer.prompt_ids(prompt)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            seed = seed if seed is not None else int(torch.randint(2**31 - 1, ()).item())
            sampling = {"do_sample": True, "temperature": temperature}
        else:
            seed = None
        was_training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng():
                if seed is not None:
                    torch.manual_seed(seed)
                options = {"max_new_tokens": max_new_tokens, **sampling, **generation}
                trained, reference = self._generate(ids, options)
                preference = self._preference_score(ids, trained, reference)
                proof = self._proof(ids)
        finally:
            self.policy.train(was_training)
        return Comparison(prompt, self._text(trained), self._text(reference), preference, seed, proof)

    def _generate(self, ids: list[int], options: dict[str, Any]) -> tuple[list[int], list[int]]:
        tokenizer = self.renderer.tokenizer
        options = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, **options}
        if self.reference is None:
            inputs = self._inputs([ids, ids])
            both = self.policy.generate(**inputs, adapter_names=["default", "__base__"], **options)
            return self._answer(both[0], len(ids)), self._answer(both[1], len(ids))
        sides = [model.generate(**self._inputs([ids]), **options)[0] for model in (self.policy, self.reference)]
        return self._answer(sides[0], len(ids)), self._answer(sides[1], len(ids))

    def _inputs(self, rows: list[list[int]]) -> dict[str, Tensor]:
        ids = torch.tensor(rows, device=self.policy.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _answer(self, output: Tensor, prompt_tokens: int) -> list[int]:
        ids: list[int] = output[prompt_tokens:].tolist()
        end = self.renderer.tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def _text(self, ids: list[int]) -> str:
        return self.renderer.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _reference_side(self) -> tuple[Any, Callable[[], AbstractContextManager[Any]]]:
        if self.reference is None:
            return self.policy, lambda: adapter_off(self.policy)
        return self.reference, nullcontext

    def _preference_score(self, ids: list[int], trained: list[int], reference: list[int]) -> float:
        prompts, answers = [ids, ids], [trained, reference]
        policy_logps = score(self.policy, prompts, answers).logps
        model, side = self._reference_side()
        with side():
            reference_logps = score(model, prompts, answers).logps
        ratios = policy_logps - reference_logps
        return torch.sigmoid(self.beta * (ratios[0] - ratios[1])).item()

    def _proof(self, ids: list[int]) -> Proof:
        from trainer_core.models import adapter_tensors, base_tensors, fingerprint

        model, side = self._reference_side()
        inputs = self._inputs([ids])
        trained = self.policy(**inputs).logits[0].float()
        with side():
            reference = model(**inputs).logits[0].float()
        log_p, log_q = trained.log_softmax(-1), reference.log_softmax(-1)
        reference_print = fingerprint(base_tensors(model))
        trained_print = fingerprint([*base_tensors(self.policy), *adapter_tensors(self.policy)])
        return Proof(
            trained_fingerprint=trained_print,
            reference_fingerprint=reference_print,
            template_fingerprint=self.renderer.fingerprint,
            max_logit_difference=(trained - reference).abs().max().item(),
            mean_kl=(log_p.exp() * (log_p - log_q)).sum(-1).mean().clamp(min=0).item(),
        )


def load_pair(directory: Path, locate: Callable[[str], str]) -> tuple[str, ModelPair]:
    """A saved model with its reference, and its method's name. Raises `ModelNotFound` when it is not complete."""
    from peft import PeftModel

    from trainer_core.models import load_model, load_reference, load_tokenizer, weights_dtype

    found = list(directory.glob("*_metadata.json"))
    if len(found) != 1:
        raise ModelNotFound(f"no trained model in {directory.name}: its metadata file is missing")
    metadata = json.loads(found[0].read_text(encoding="utf-8"))
    dtype = weights_dtype(metadata["use_lora"], metadata["precision"])
    renderer = Renderer(load_tokenizer(str(directory)), metadata["uses_chat_template"])
    reference = None
    if metadata["use_lora"]:
        base = load_model(locate(metadata["model_name"]), dtype)
        policy: Any = PeftModel.from_pretrained(base, str(directory)).eval()
        if metadata["ref_model_name"] != metadata["model_name"]:
            reference = load_reference(locate(metadata["ref_model_name"]), dtype)
    else:
        policy = load_model(str(directory), dtype).eval()
        reference = load_reference(locate(metadata["ref_model_name"]), dtype)
    return metadata["training_method"], ModelPair(policy, reference, renderer, metadata["beta"])
