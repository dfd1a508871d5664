"""Orca's pairs and distilabel's: `question` or `input`, with `system`, `chosen` and `rejected`.

https://huggingface.co/datasets/Intel/orca_dpo_pairs: `question`.
https://huggingface.co/datasets/argilla/distilabel-intel-orca-dpo-pairs: `input`.
"""

from trainer_core.layouts.claims import Claim, Layout, Sample, renamed
from trainer_core.reading_options import ReadingOptions


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    prompts = [name for name in ("question", "input") if name in sample.columns]
    if len(prompts) != 1 or not sample.has("chosen", "rejected"):
        return None
    if sample.has_any("prompt", "instruction", "messages", "conversations"):
        return None
    return renamed(sample, prompt=prompts[0], chosen="chosen", rejected="rejected")


LAYOUT = Layout("orca", claims)
