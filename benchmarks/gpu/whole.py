"""Complete runs, from loading to saving: LoRA and DoRA on bf16, fp16, fp32 and 4-bit weights, each kind of optimizer, and
full fine-tuning.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.arm import Options, Row
from benchmarks.gpu.shapes import make_rows, model_in
from benchmarks.phases import spans

_STEPS, _BATCH = 6, 4


@dataclass(frozen=True)
class Training:
    """One kind of training."""

    shape: str
    method: str
    precision: str
    use_lora: bool = True
    in_4bit: bool = False
    use_dora: bool = False
    optim: str = "adamw_torch_fused"


KINDS = (
    Training("small", "ipo", "bf16"),
    Training("small", "kto", "bf16", in_4bit=True),
    Training("small", "kto", "fp16"),
    Training("small", "cpo", "bf16", use_lora=False),
    Training("small", "ipo", "fp32"),
    Training("small", "ipo", "bf16", use_dora=True, optim="adamw_8bit"),
    Training("small", "cpo", "bf16", in_4bit=True, use_dora=True, optim="paged_adamw_8bit"),
    Training("small", "kto", "bf16", optim="paged_adamw_32bit"),
    Training("qwen2.5-7b", "kto", "bf16", in_4bit=True),
)
TINY = (
    Training("tiny", "ipo", "bf16"),
    Training("tiny", "kto", "auto", in_4bit=True),
    Training("tiny", "cpo", "auto", use_lora=False),
)


def run(options: Options, row: Row) -> None:
    kinds = TINY if options.shape == "tiny" else [one for one in KINDS if options.shape in (None, one.shape)]
    prompt, answer = (48, 24) if options.shape == "tiny" else (256, 128)
    for i, kind in enumerate(kinds):
        folder = options.folder / str(i)
        folder.mkdir()
        make_rows(folder / "rows.jsonl", kind.method, rows=_STEPS * _BATCH, prompt_tokens=prompt, answer_tokens=answer)
        cells = {"model": kind.shape, "method": kind.method, "weights": _weights(kind)}
        try:
            cells |= _trained(kind, model_in(options.models, kind.shape), folder, prompt, answer)
        # One kind that fails must not hide what the others do.
        except Exception as error:
            cells |= {"error": f"{type(error).__name__}: {error}"[:1500]}
        row(**cells)


def _weights(kind: Training) -> str:
    trained = "DoRA" if kind.use_dora else "LoRA" if kind.use_lora else "all weights train"
    return f"{kind.precision}{', 4-bit' if kind.in_4bit else ''}, {trained}, {kind.optim}"


def _trained(kind: Training, model: Path, folder: Path, prompt: int, answer: int) -> dict[str, Any]:
    """Seconds of the parts, the most GPU memory, and what the training says of itself."""
    import torch

    from trainer_core import PreferenceTrainer
    from trainer_core.config import CONFIG_OF
    from trainer_core.observer import Observer

    class Watch(Observer):
        def __init__(self) -> None:
            self.phases: list[tuple[str, float]] = []
            self.losses: list[float] = []
            self.codes: list[str] = []

        def phase(self, name: str) -> None:
            self.phases.append((name, time.perf_counter()))

        def metrics(self, step: int, values: dict[str, float | None]) -> None:
            if values.get("loss") is not None:
                self.losses.append(float(values["loss"] or 0.0))

        def warning(self, code: str, message: str) -> None:
            self.codes.append(code)

        def effect(self, verdict: str, evidence: dict[str, Any]) -> None:
            pass

    config_type: Any = CONFIG_OF[kind.method]
    config = config_type(
        model_name=str(model),
        dataset_path=str(folder / "rows.jsonl"),
        output_dir=str(folder / "out"),
        precision=kind.precision,
        use_lora=kind.use_lora,
        use_dora=kind.use_dora,
        optim=kind.optim,
        load_in_4bit=kind.in_4bit,
        max_prompt_length=2 * prompt,
        max_length=2 * (prompt + answer),
        per_device_train_batch_size=_BATCH,
        gradient_accumulation_steps=1,
        learning_rate=1e-4,
        learning_rate_cap=None,
        max_steps=_STEPS,
        logging_steps=1,
        save_steps=3,
    )
    watch = Watch()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer = PreferenceTrainer(config, observer=watch)
    trainer.train()
    ended = time.perf_counter()
    reply = trainer.generate_with_comparison("هل تعرف اسم عاصمة المغرب؟", max_length=8, temperature=0)
    acceleration = trainer.acceleration_metadata()
    return {
        "precision": trainer.precision,
        "seconds": {name: round(seconds, 1) for name, seconds in spans(watch.phases, ended).items()},
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
        "first_loss": watch.losses[0],
        "last_loss": watch.losses[-1],
        "path": acceleration["path"],
        "tokens": f"{acceleration['tokens_computed']} of {acceleration['tokens_plain']}",
        "effect": trainer.effect.verdict if trainer.effect else None,
        "max_logit_difference": reply["proof"]["max_logit_difference"],
        "warnings": watch.codes,
    }
