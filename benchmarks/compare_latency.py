"""What does a comparison cost? `python -m benchmarks.compare_latency`.

A model with random weights and LoRA adapters: both sides in one batch, as the service answers, next to one after the
other; an adapter on a warm base next to a model that is loaded; fingerprints that are known next to those taken anew.
`--service`: comparisons of the shipped model through the whole service, from the request to the answer.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from benchmarks.gpu.shapes import SHAPES, SHIPPED, make_model
from tafdil.client import Client
from tafdil.local_stack import LocalStack
from trainer_core import IPOConfig, PreferenceTrainer
from trainer_core.fingerprints import Remembered, base_tensors
from trainer_core.small_batches import SmallBatches
from trainer_core.warm import WarmPairs

PROMPT = "هل تعرف اسم عاصمة المغرب؟ اشرح لماذا اختيرت هذه المدينة، وما الذي يميزها عن غيرها من المدن."


def seconds(action: Callable[[], object], runs: int) -> float:
    """The median of some runs, after one of warm-up."""
    times: list[float] = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--service", action="store_true", help="through the whole service, with the shipped model")
    options = parser.parse_args()
    if options.service:
        found = sorted(through_the_service(options.tokens, options.runs))
        print(f"{options.tokens} tokens, {len(found)} comparisons: median {median(found):.3f} s, maximum {found[-1]:.3f} s")
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model", options.model, "float32")
        torch.set_default_dtype(torch.float32)
        for name in ("aa", "bb"):
            config = IPOConfig(
                model_name=str(folder / "model"),
                dataset_path=str(SHIPPED / "data" / "pairs_train.jsonl"),
                output_dir=str(folder / name),
                max_steps=1,
                gradient_accumulation_steps=1,
                learning_rate=1e-3,
                learning_rate_cap=None,
            )
            PreferenceTrainer(config).train()
        table = measured(folder, options)
    command = " ".join(["python -m benchmarks.compare_latency", *sys.argv[1:]])
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}; {options.model}, answers of "
        f"{options.tokens} tokens, medians of {options.runs} runs. Made with `{command}`.\n"
    )
    print("| what | s | next to | s | ratio |")
    print("|---|---|---|---|---|")
    for what, own, other, others in table:
        print(f"| {what} | {own:.3f} | {other} | {others:.3f} | {own / others:.2f} |")


def through_the_service(tokens: int, runs: int) -> list[float]:
    """Seconds of warm comparisons, each with another prompt."""
    spec = {
        "method": "ipo",
        "model_name": "tafdil/tiny-arabic-qwen-2",
        "max_steps": 20,
        "learning_rate": 1e-3,
        "learning_rate_cap": None,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(Path(folder), port=0, say=lambda _: None, variables={"OMP_NUM_THREADS": "1"}) as stack,
        Client(stack.url) as client,
    ):
        job = client.submit({**spec, "dataset_id": client.upload_dataset(SHIPPED / "data" / "pairs_train.jsonl").id})
        job = client.wait(job.id)
        # What starts in the background has started by then.
        time.sleep(20)
        times: list[float] = []
        for i in range(runs + 1):
            began = time.perf_counter()
            answer = client.compare(job.id, f"{PROMPT} {i}", max_length=tokens, temperature=0)
            times.append(time.perf_counter() - began)
            if answer.result is None:
                raise RuntimeError(f"comparison {i} is {answer.state}: {answer.error}")
        return times[1:]


def measured(folder: Path, options: argparse.Namespace) -> list[tuple[str, float, str, float]]:
    """(what, seconds, next to what, seconds)."""
    pairs = WarmPairs(2**40, lambda name: name)
    pair = pairs.get("aa", folder / "aa")[1]
    ids = torch.tensor([pair.renderer.prompt_ids(PROMPT)])
    fixed = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "do_sample": False, "pad_token_id": 0}
    both = {"input_ids": ids.repeat(2, 1), "attention_mask": torch.ones_like(ids).repeat(2, 1)}
    one = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @torch.no_grad()
    def together() -> None:
        with SmallBatches():
            pair.policy.generate(**both, adapter_names=["aa", "__base__"], **fixed)

    @torch.no_grad()
    def apart() -> None:
        pair.policy.generate(**one, **fixed)
        with pair.policy.disable_adapter():
            pair.policy.generate(**one, **fixed)

    def load() -> None:
        WarmPairs(2**40, lambda name: name).get("aa", folder / "aa")

    def swap() -> None:
        pairs.forget("bb")
        pairs.get("bb", folder / "bb")

    known = Remembered()

    def whole() -> None:
        pairs.get("aa", folder / "aa")[1].compare(PROMPT, max_new_tokens=options.tokens)

    def proof_anew() -> None:
        Remembered().fingerprint("base", base_tensors(pair.policy))

    return [
        ("both sides in one batch", seconds(together, options.runs), "one after the other", seconds(apart, options.runs)),
        ("an adapter on a warm base", seconds(swap, options.runs), "a model loaded", seconds(load, options.runs)),
        (
            "fingerprint of unchanged weights",
            seconds(lambda: known.fingerprint("base", base_tensors(pair.policy)), options.runs),
            "taken anew",
            seconds(proof_anew, options.runs),
        ),
        (
            "a whole comparison, warm",
            seconds(whole, options.runs),
            "its answers alone, one after the other",
            seconds(apart, options.runs),
        ),
    ]


if __name__ == "__main__":
    main()
