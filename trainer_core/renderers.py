"""Renderers for models on disk: for the model that a run starts from, and for one that a run saved."""

from pathlib import Path
from typing import Any

from trainer_core.config import TrainingSettings
from trainer_core.models import load_tokenizer
from trainer_core.stop_tokens import generation_end
from trainer_core.tokens import Renderer


def load_renderer(settings: TrainingSettings, path: str) -> Renderer:
    """The renderer for a run.

    Args:
        path: directory or hub name of the model.

    Raises:
        ModelNotFound, ModelRefused, SpecInvalid: also if its chat template, or an option for it, cannot be used.
    """
    tokenizer = load_tokenizer(path)
    return Renderer(
        tokenizer,
        settings.apply_chat_template,
        system_prompt=settings.system_prompt,
        chat_template_kwargs=settings.chat_template_kwargs,
        special_tokens_in_text=settings.special_tokens_in_text,
        generation_end=generation_end(path),
        model=settings.model_name,
    )


def load_saved_renderer(directory: Path, metadata: dict[str, Any], path: str) -> Renderer:
    """The renderer that a saved model was trained with.

    Args:
        metadata: the content of its metadata file. Earlier versions wrote fewer fields.
        path: the model whose generation configuration is read if the metadata has no stop tokens.
    """
    stop: list[dict[str, Any]] | None = metadata.get("stop_tokens")
    if stop is None:
        ends = generation_end(path)
    else:
        ends = tuple(token["id"] for token in stop if "generation_config" in token["named_by"])
    return Renderer(
        load_tokenizer(str(directory)),
        metadata["uses_chat_template"],
        system_prompt=metadata.get("system_prompt"),
        chat_template_kwargs=metadata.get("chat_template_kwargs"),
        special_tokens_in_text=metadata.get("special_tokens_in_text", "split"),
        generation_end=ends,
        adds_start=bool(metadata.get("start_tokens")),
        model=metadata["model_name"],
    )


def renderer_metadata(renderer: Renderer) -> dict[str, Any]:
    """What the metadata file says about a renderer; `load_saved_renderer` reads it."""
    return {
        "uses_chat_template": renderer.uses_template,
        "template_sha256": renderer.fingerprint,
        "system_prompt": renderer.system_prompt,
        "chat_template_kwargs": renderer.chat_template_kwargs,
        "special_tokens_in_text": renderer.special_tokens_in_text,
        "start_tokens": list(renderer.start_ids),
        "stop_tokens": renderer.stop.as_dicts(renderer.tokenizer),
    }
