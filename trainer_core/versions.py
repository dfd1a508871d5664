"""Differences between the versions that this library supports: torch 2.11 to 2.13, transformers 5.17 to 5.23."""

import inspect
from typing import Any

from torch.nn.attention.varlen import varlen_attn

from trainer_core.errors import SpecInvalid
from trainer_core.wording import say

__all__ = ["GROUPED_QUERIES", "encode_marked_chat", "mark_control_tokens", "varlen_attn"]

# Older versions accept fewer key heads than query heads without an option.
GROUPED_QUERIES: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Options of `varlen_attn` if query heads share keys."""

try:
    from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens
except ImportError:

    def mark_control_tokens(obj: Any, control_tokens_re: Any) -> Any:
        """Raises `SpecInvalid`: this transformers cannot distinguish users' control tokens from the template's."""
        raise SpecInvalid.at("special_tokens_in_text", say("control_tokens_need_transformers"))

    def encode_marked_chat(tokenizer: Any, chat: str) -> list[int]:
        """Never reached: `mark_control_tokens` comes first."""
        raise NotImplementedError
