"""Models of published shapes with random weights, and rows of given lengths: speed and memory depend on shapes alone."""

import json
import random
from pathlib import Path
from typing import Any

from trainer_core.config import SETTINGS_OF

# From the models' published configurations.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "small": {
        "vocab_size": 151_936,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 1280,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
SHIPPED = Path(__file__).resolve().parents[2] / "tafdil" / "shipped"
TOKENIZER = SHIPPED / "models" / "tafdil" / "tiny-arabic-qwen-2"


def model_in(folder: Path, shape: str) -> Path:
    """The directory of a model of a shape, with bf16 weights; written below `folder` when first asked for."""
    place = folder / shape
    if not place.exists():
        # A process that is cut short must leave nothing that looks whole.
        staged = folder / f"{shape}.part"
        make_model(staged, shape)
        staged.rename(place)
    return place


def make_model(folder: Path, shape: str, dtype: str = "bfloat16") -> None:
    """Writes a model of a shape with random weights, and the tokenizer that ships."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], max_position_embeddings=4096))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder, max_shard_size="4GB")
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)


def make_rows(path: Path, method: str, *, rows: int, prompt_tokens: int, answer_tokens: int, spread: float = 0.6) -> None:
    """Writes rows of words from the shipped data.

    Args:
        rows: rows for KTO, pairs otherwise.
        spread: lengths are drawn from 1 - spread to 1 + spread times the tokens asked for.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    lines = (SHIPPED / "data" / "pairs_train.jsonl").read_text(encoding="utf-8").splitlines()
    words = [word for line in lines for word in json.loads(line)["chosen"].split()]
    rng = random.Random(0)

    def text(tokens: int) -> str:
        ids = tokenizer(" ".join(rng.choices(words, k=2 * tokens)))["input_ids"]
        return tokenizer.decode(ids[: int(tokens * rng.uniform(1 - spread, 1 + spread))])

    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            row: dict[str, Any] = {"prompt": text(prompt_tokens)}
            answers = [" " + text(answer_tokens) for _ in range(2)]
            if SETTINGS_OF[method].rows == "labels":
                row |= {"completion": answers[0], "label": i % 2 == 0}
            else:
                row |= {"chosen": answers[0], "rejected": answers[1]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
