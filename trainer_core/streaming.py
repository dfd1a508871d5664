"""Streams answers while they are generated."""

import time
from collections.abc import Callable

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from trainer_core.tokens import Renderer

Tell = Callable[[list[str]], None]
"""Called with each row's text so far."""

_TELL_EVERY_S = 0.2


class TextStreamer(BaseStreamer):
    """For `generate`: reports the text of all rows in a batch at most five times a second, but not the final text."""

    def __init__(self, renderer: Renderer, tell: Tell) -> None:
        self._renderer, self._tell = renderer, tell
        self._rows: list[list[int]] | None = None
        self._told_at = time.monotonic()

    def put(self, value: Tensor) -> None:
        """Takes the prompt, (rows, tokens), first, then one token per row, (rows,)."""
        if self._rows is None:
            self._rows = [[] for _ in range(len(value))]
            return
        for row, token in zip(self._rows, value.tolist(), strict=True):
            row.append(token)
        if time.monotonic() - self._told_at >= _TELL_EVERY_S:
            self._told_at = time.monotonic()
            self._tell([self._text(row) for row in self._rows])

    def end(self) -> None:
        """Does nothing: the caller returns the whole answer."""

    def _text(self, ids: list[int]) -> str:
        text = self._renderer.tokenizer.decode(self._renderer.stop.without_end(ids), skip_special_tokens=True)
        # A letter whose bytes have not all arrived yet.
        return text.rstrip("\ufffd").lstrip()
