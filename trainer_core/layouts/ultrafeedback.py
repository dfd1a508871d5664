"""UltraFeedback as pairs, and mixes based on it: whole conversations with scores and model names.

https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized: `prompt`, `chosen`, `rejected`, `score_chosen`.
https://huggingface.co/datasets/argilla/dpo-mix-7k: `chosen`, `rejected`, `chosen_rating`, `rejected_rating`, no prompt.
"""

from trainer_core.layouts import conversations
from trainer_core.layouts.claims import Claim, Layout, Sample
from trainer_core.reading_options import ReadingOptions


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    return (
        conversations.claim(sample) if conversations.is_conversations(sample) and conversations.has_marks(sample) else None
    )


LAYOUT = Layout("ultrafeedback", claims)
