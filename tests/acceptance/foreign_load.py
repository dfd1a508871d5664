"""Loads downloaded models as a stranger does, by the lines of their cards, and answers prompts with them.

Runs alone: `python -I foreign_load.py ASKED`, where ASKED is a JSON file with `prompts`, `folders` and `max_length`. Prints
a JSON object: for each folder the answers, each with its text after every token, and each token's best logit and how far
the second best is below it.
"""

import importlib.abc
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

FOREIGN = ("trainer_core", "tafdil", "worker", "jobs", "api")


class _Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in FOREIGN:
            raise ImportError(f"{name} is not there for a stranger")


def answers(folder: str, prompts: list[str], max_length: int) -> list[dict[str, Any]]:
    import torch

    os.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    loaded: dict[str, Any] = {}
    exec(code, loaded)  # noqa: S102  # what a reader of the card runs
    model, tokenizer = loaded["model"], loaded["tokenizer"]
    found = []
    for prompt in prompts:
        turns = [{"role": "user", "content": prompt}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad():
            told = model.generate(**asked, max_new_tokens=max_length, **options)
        tokens = told.sequences[0, asked["input_ids"].shape[1] :].tolist()
        best = [logits[0].float().topk(2).values for logits in told.logits]
        texts = [tokenizer.decode(tokens[:count], skip_special_tokens=True) for count in range(len(tokens) + 1)]
        found.append({"texts": texts, "gaps": [(a - b).item() for a, b in best], "best": [a.item() for a, _ in best]})
    return [{"dtype": str(model.dtype), **one} for one in found]


def main() -> None:
    sys.meta_path.insert(0, _Refuse())
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {folder: answers(folder, asked["prompts"], asked["max_length"]) for folder in asked["folders"]}
    assert not [name for name in sys.modules if name.partition(".")[0] in FOREIGN]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
