"""The forward pass that TRL's trainers call, on packed rows."""

import functools
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from trainer_core.acceleration import attention
from trainer_core.acceleration.head import score_tokens
from trainer_core.acceleration.packing import Packed, pack, pack_behind
from trainer_core.wording import Message, say

# Models whose attention layers work with `attention.install`: tested with these, on every path.
MODEL_TYPES = ("qwen2", "qwen3")
# Options that TRL's call for log-probabilities may pass. Answers are never cached, whatever `use_cache` says.
_NEEDED = ("input_ids", "attention_mask", "labels")
_KNOWN = {*_NEEDED, "use_cache"}
# If angles depend on the longest row of the batch, its keys cannot be used for another batch.
_ROPE_BY_LENGTH = ("dynamic", "longrope")


@dataclass
class Savings:
    """Counts the tokens that went through a model's layers, and those that the plain path would have sent: padded rows."""

    computed: int = 0
    plain: int = 0
    computed_before: int = 0
    """The part of `computed` from earlier processes of the same run."""
    passes: int = 0
    """Accelerated forward passes with gradients in this process."""
    batches: dict[str, int] = field(default_factory=lambda: {"shared_prompt": 0, "plain": 0})
    """Training micro-batches by the path that computed their losses."""

    refused_calls: set[str] = field(default_factory=set)
    """Why TRL's own code answered some calls of an accelerated model."""

    def counts(self) -> tuple[int, int, int]:
        """The counts that passes increase, for `restore`."""
        return self.computed, self.plain, self.passes

    def restore(self, counts: tuple[int, int, int]) -> None:
        """Forgets the passes since `counts`."""
        self.computed, self.plain, self.passes = counts


@dataclass
class Behind:
    """A second batch, scored without gradients and without recomputing what its rows share with the first batch.

    Attributes:
        input_ids, attention_mask, labels: (rows, width); row i begins like the first batch's row i.
        log_probs: (rows, width - 1), filled in.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    log_probs: Tensor | None = None


def refusal(model: Any) -> Message | None:
    """Why a model needs the plain path; None if it can be accelerated."""
    causal = causal_of(model)
    return _refusal_of_layers(causal.config) or _refusal_of_head(causal)


def _refusal_of_layers(config: Any) -> Message | None:
    kind = getattr(config, "model_type", "")
    if kind not in MODEL_TYPES:
        return say("plain_model_type", type=kind, known=list(MODEL_TYPES))
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if others:
        return say("plain_layer_types", types=sorted(others))
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in _ROPE_BY_LENGTH:
        return say("plain_rope", type=rope)
    if getattr(config, "attention_dropout", 0):
        return say("plain_attention_dropout")
    if config._attn_implementation != "sdpa":
        return say("plain_attention", type=str(config._attn_implementation))
    return None


def _refusal_of_head(causal: Any) -> Message | None:
    head = causal.get_output_embeddings()
    path = next((name for name, module in causal.named_modules() if module is head), "?")
    if type(head) is not nn.Linear:
        return say("plain_head_type", layer=path, type=f"{type(head).__module__}.{type(head).__qualname__}")
    if not head.weight.is_floating_point():
        return say("plain_head_dtype", layer=path, dtype=str(head.weight.dtype))
    return None


def causal_of(model: Any) -> Any:
    """The causal language model inside a LoRA model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_accelerated(model: Any) -> bool:
    return hasattr(causal_of(model), "_tafdil_savings")


def release(model: Any) -> None:
    """Makes a previously accelerated model answer with TRL's own code, which by now wraps ours."""
    if is_accelerated(model):
        del causal_of(model)._tafdil_savings


def accelerate(
    model: Any,
    savings: Savings,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    *,
    only_log_probs: bool = False,
) -> None:
    """Makes `model(..., labels=labels, fused_lm_head=True)`, TRL's call for log-probabilities, take packed rows.

    Every other call of the model stays as it was. With `behind`, a `Behind`, the call scores that batch too. The next call
    with the same `input_ids` then returns the first batch's result without recomputing it: TRL asks for both, one after the
    other.

    Args:
        savings: counts tokens.
        context: entered for each answer, e.g. autocast.
        only_log_probs: skip what only the metrics of a policy need.
    """
    causal = causal_of(model)
    attention.install(causal.base_model)
    answer = _Answer(causal, savings, only_log_probs)
    original = causal.forward

    # The original signature: `generate` validates its arguments against it.
    @functools.wraps(type(causal).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, behind: Behind | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kwargs)
        if more := _unknown(args, kwargs):
            savings.refused_calls.add(say("plain_call", names=more))
            return original(*args, fused_lm_head=True, **kwargs)
        with context():
            return answer(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"], behind)

    causal.forward = types.MethodType(forward, causal)
    causal._tafdil_savings = savings


def _unknown(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Options that a call passes, or omits, and that `_Answer` does not support; empty if it supports the call."""
    # A LoRA model passes every option, most of them None.
    passed = {name for name, value in kwargs.items() if value is not None}
    more = [*(["*args"] if args else []), *sorted(passed - _KNOWN)]
    return more + [f"{name}=None" for name in _NEEDED if kwargs.get(name) is None]


def states_at(model: Any, input_ids: Tensor, attention_mask: Tensor, predicts: Tensor) -> Tensor:
    """Hidden states of an accelerated model, (positions, size), from which it predicts the next tokens at some positions.

    Args:
        input_ids, attention_mask: (rows, width). Rows i and i + rows/2 share their beginning.
        predicts: (rows, width - 1) bool, true at each position whose state to return.
    """
    packed = pack(input_ids, attention_mask)
    return _hidden(causal_of(model), packed)[packed.places[:, :-1][predicts]]


def _hidden(causal: Any, packed: Packed) -> Tensor:
    """(T, size)."""
    # No mask: the plan says what each segment attends to.
    states = causal.base_model(
        input_ids=packed.ids,
        attention_mask={"full_attention": None},
        position_ids=packed.positions,
        use_cache=False,
        packed=packed,
    )
    return states.last_hidden_state[0]


class _Answer:
    def __init__(self, causal: Any, savings: Savings, only_log_probs: bool) -> None:
        self._causal, self._savings, self._only_log_probs = causal, savings, only_log_probs
        self._ahead: tuple[Tensor, Any] | None = None

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, behind: Behind | None) -> Any:
        ahead, self._ahead = self._ahead, None
        if behind is None and ahead is not None and ahead[0] is input_ids:
            return ahead[1]
        packed = pack(input_ids, attention_mask)
        self._savings.passes += torch.is_grad_enabled()
        self._savings.plain += input_ids.numel()
        if behind is not None:
            packed.kept = {}
        hidden = self._hidden(packed)
        output = self._scored(hidden, packed.places, labels)
        if behind is not None:
            self._score_behind(behind, packed, hidden.detach(), input_ids, attention_mask)
            packed.kept = None
            self._ahead = input_ids, output
        return output

    def _hidden(self, packed: Packed) -> Tensor:
        self._savings.computed += packed.tokens
        return _hidden(self._causal, packed)

    @torch.no_grad()
    def _score_behind(self, behind: Behind, packed: Packed, hidden: Tensor, ids: Tensor, mask: Tensor) -> None:
        second = pack_behind(behind.input_ids, behind.attention_mask, packed, ids, mask)
        self._savings.plain += behind.input_ids.numel()
        if second.tokens:
            hidden = torch.cat([hidden, self._hidden(second)])
        behind.log_probs = self._scored(hidden, second.places, behind.labels, only_log_probs=True).log_probs

    def _scored(self, hidden: Tensor, places: Tensor, labels: Tensor, *, only_log_probs: bool = False) -> Any:
        """As TRL's fused head: (rows, width - 1), a value for each next-token label and 0 where there is none."""
        wanted = labels[:, 1:] != -100
        states = hidden[places[:, :-1][wanted]]
        # A reference inside a LoRA model is called without gradients while its model is in training mode.
        is_reference = self._causal.training and not torch.is_grad_enabled()
        with_metrics = not (self._only_log_probs or only_log_probs or is_reference)
        head = self._causal.get_output_embeddings()
        scores = score_tokens(states, head, labels[:, 1:][wanted], with_metrics=with_metrics)

        def spread(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.new_zeros(wanted.shape).masked_scatter(wanted, values)

        return FusedCausalLMOutput(
            log_probs=spread(scores.log_probs),
            entropy=spread(scores.entropy),
            mean_logits=spread(scores.mean_logits),
            is_top1=spread(scores.is_top1),
            label_mask=wanted,
        )
