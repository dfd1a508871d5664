"""TRL's preference format with an implicit prompt, or with answers that repeat it: `chosen` and `rejected` are whole
conversations, and the prompt is the part that both share. https://huggingface.co/docs/trl/dataset_formats#preference
"""

from trainer_core.layouts.claims import Claim, Layout, Sample, renamed
from trainer_core.reading_options import ReadingOptions

# Columns that UltraFeedback and its mixes have beside the answers.
_MARKS = (
    "score_chosen",
    "score_rejected",
    "chosen_score",
    "rejected_score",
    "chosen_rating",
    "rejected_rating",
    "chosen-rating",
    "rejected-rating",
    "chosen_model",
    "chosen-model",
    "prompt_id",
    "messages",
)
_OTHER_PROMPTS = ("instruction", "question", "input", "conversations")


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    return claim(sample) if is_conversations(sample) and not has_marks(sample) else None


def is_conversations(sample: Sample) -> bool:
    """Whether the answers are whole conversations and no other column holds the prompt."""
    is_pairs = sample.has("chosen", "rejected")
    if not sample.has_whole or not (is_pairs or sample.has("completion", "label")):
        return False
    return sample.has("prompt") or not sample.has_any(*_OTHER_PROMPTS)


def has_marks(sample: Sample) -> bool:
    """Whether the rows also have scores or model names."""
    return sample.has_any(*_MARKS)


def claim(sample: Sample) -> Claim:
    names = ("chosen", "rejected") if sample.has("chosen", "rejected") else ("completion", "label")
    return renamed(sample, prompt="prompt", **{name: name for name in names})


LAYOUT = Layout("conversations", claims)
