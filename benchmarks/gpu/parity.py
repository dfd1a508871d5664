"""How far half precision is from float64: on the plain path, with a loop over segments, and with one kernel call a layer.

Errors are norms of differences over norms, of log-probabilities a token and of all gradients; `ratio` is next to the plain
path's: about 1 for a path that rounds as TRL's own does. The reference is the same weights computed in float64.
"""

import copy
from contextlib import nullcontext
from typing import Any

from benchmarks.gpu.arm import Options, Row
from benchmarks.gpu.shapes import SHAPES

# Weights, whether adapters train, and arithmetic.
KINDS = (("bfloat16", True, "bfloat16"), ("float32", False, "bfloat16"), ("float16", True, "float16"))


def run(options: Options, row: Row) -> None:
    import torch
    from torch import Tensor

    shape = options.shape or "qwen2.5-0.5b"
    on_gpu = torch.cuda.is_available()
    cases = [(*kind, 256, 128, 0) for kind in KINDS]
    cases += [(*KINDS[0], 256, 128, 1), (*KINDS[0], 1024, 256, 0)]
    if shape == "tiny":
        cases = [(*kind, 24, 12, 0) for kind in (KINDS if on_gpu else KINDS[:2])]
    for weights, has_adapters, arithmetic, prompt, answer, seed in cases:
        torch.manual_seed(seed)
        base, dtype = _model(shape, getattr(torch, weights), has_adapters), getattr(torch, arithmetic)
        batch = _pairs(2, prompt, answer, SHAPES[shape]["vocab_size"])
        exact = _answered(_plain(copy.deepcopy(base).double()), batch, torch.float64)
        found: dict[str, tuple[Tensor, Tensor]] = {"plain": _answered(_plain(copy.deepcopy(base)), batch, dtype)}
        for name, by_kernel in (("segments", False), ("kernel", True)):
            if not by_kernel or on_gpu:
                found[name] = _answered(_fast(copy.deepcopy(base), by_kernel), batch, dtype)
        errors = {name: [_error(a, b) for a, b in zip(of, exact, strict=True)] for name, of in found.items()}
        for name, (of_logps, of_gradients) in errors.items():
            row(
                model=shape,
                weights=f"{weights}, {'LoRA' if has_adapters else 'all train'}, in {arithmetic}",
                rows=f"{prompt}/{answer}",
                seed=seed,
                path=name,
                error_of_log_probs=float(f"{of_logps:.3g}"),
                ratio=round(of_logps / errors["plain"][0], 2),
                error_of_gradients=float(f"{of_gradients:.3g}"),
                gradient_ratio=round(of_gradients / errors["plain"][1], 2),
                most_nats=float(f"{(found[name][0] - exact[0]).abs().max().item():.3g}"),
            )
        del base, exact, found
        if on_gpu:
            torch.cuda.empty_cache()


def _model(shape: str, weights: Any, has_adapters: bool) -> Any:
    """Random weights; adapters already say something."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], attn_implementation="sdpa")).to(weights)
    if not has_adapters:
        return model.train()
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(model, lora).to(device)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return policy.train()


def _pairs(count: int, prompt: int, answer: int, vocabulary: int) -> tuple[Any, Any, Any]:
    """Padded ids, mask and labels of pairs in TRL's order, of lengths that differ."""
    import torch

    width = prompt + answer
    ids = torch.randint(1, vocabulary, (2 * count, width))
    mask, labels = torch.ones_like(ids), ids.clone()
    for i in range(count):
        begins = prompt - i * (prompt // 4)
        for j, ends in ((i, width), (i + count, width - (i + 1) * (answer // 5))):
            ids[j, :begins] = ids[i, :begins]
            mask[j, ends:] = 0
            labels[j] = ids[j].masked_fill(mask[j] == 0, -100)
            labels[j, :begins] = -100
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ids.to(device), mask.to(device), labels.to(device)


def _plain(policy: Any) -> Any:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(policy.get_base_model() if hasattr(policy, "get_base_model") else policy)
    return policy


def _fast(policy: Any, by_kernel: bool) -> Any:
    from benchmarks.gpu.sides import attention_by
    from trainer_core.acceleration import Savings, accelerate

    attention_by(kernel=by_kernel)
    accelerate(policy, Savings(), only_log_probs=True)
    return policy


def _answered(policy: Any, batch: tuple[Any, Any, Any], dtype: Any) -> tuple[Any, Any]:
    """Log-probabilities of labelled tokens, and the gradients of a sum that weighs rows differently, as float64 vectors."""
    import torch

    ids, mask, labels = batch
    precise = dtype == torch.float64
    context = nullcontext() if precise else torch.autocast(ids.device.type, dtype)
    with context:
        if precise:
            logits = policy(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            wanted = labels[:, 1:] != -100
            chosen = logits[wanted].log_softmax(-1).gather(1, labels[:, 1:][wanted][:, None])[:, 0]
            log_probs = torch.zeros_like(labels[:, 1:], dtype=dtype).masked_scatter(wanted, chosen)
        else:
            log_probs = policy(
                input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True
            ).log_probs
    weights = torch.linspace(-1, 2, len(ids), device=ids.device, dtype=log_probs.dtype)
    (log_probs.sum(dim=1) * weights).sum().backward()
    gradients = [p.grad.double().flatten() for p in policy.parameters() if p.grad is not None]
    return log_probs.detach()[labels[:, 1:] != -100].double(), torch.cat(gradients)


def _error(found: Any, exact: Any) -> float:
    return ((found - exact).norm() / exact.norm()).item()
