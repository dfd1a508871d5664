"""Makes the data directory of a version, for the tests of later ones: `python -m tests.upgrades.make_data_directory NAME`.

Run it on the version that the directory is to be of. `NAME.tar.gz`, beside this file, then holds `data` (a data directory
with finished and paused jobs) and `models` (their base model, so that no later change of the shipped one matters).
"""

import random
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tafdil import Client
from tests.stack import StackUnderTest, until
from tests.training import make_model, some_rows, write_rows

HERE = Path(__file__).parent
MODEL = "fixtures/base"
_SPEC: dict[str, Any] = {
    "model_name": MODEL,
    "learning_rate": 1e-2,
    "learning_rate_cap": None,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "lora_r": 2,
    "lora_target_modules": ["q_proj", "v_proj"],
    "logging_steps": 20,
    "eval_steps": 100,
    "save_total_limit": 1,
    "sample_generations": 1,
    "sample_max_length": 8,
}
_LONG = {"max_steps": 600, "warmup_ratio": 0.5}


def few_prompts() -> list[dict[str, Any]]:
    """KTO rows of four prompts: no share of a tenth holds a whole prompt."""
    answers = [(f"سؤال {i % 4}", f"جواب {i}") for i in range(40)]
    random.Random(0).shuffle(answers)
    return [{"prompt": p, "completion": c, "label": i % 2 == 0} for i, (p, c) in enumerate(answers)]


def fill(client: Client, work: Path) -> None:
    pairs = client.upload_dataset(write_rows(work / "pairs.jsonl", some_rows("ipo", 32)), name="pairs").id
    held_out = client.upload_dataset(write_rows(work / "held.jsonl", some_rows("ipo", 40)[32:]), name="held out").id
    labelled = client.upload_dataset(write_rows(work / "kto.jsonl", some_rows("kto", 32)), name="labelled").id
    grouped = client.upload_dataset(write_rows(work / "grouped.jsonl", few_prompts()), name="few prompts").id

    def submit(name: str, method: str, dataset: str, **fields: Any) -> str:
        return client.submit({**_SPEC, "name": name, "method": method, "dataset_id": dataset, **fields}).id

    for method, dataset in (("kto", labelled), ("ipo", pairs), ("cpo", pairs)):
        split = {"validation_split": 0.2} if dataset == labelled else {"eval_dataset_id": held_out}
        job = client.wait(submit(f"finished {method}", method, dataset, max_steps=40, **split))
        assert job.state == "succeeded", job
    for name, method, dataset, fields in (
        ("paused", "ipo", pairs, {"eval_dataset_id": held_out}),
        ("paused with few prompts", "kto", grouped, {"validation_split": 0.1}),
    ):
        job_id = submit(name, method, dataset, **_LONG, **fields)
        until(lambda job_id=job_id: client.job(job_id).step >= 5, 120)
        client.pause(job_id)
        job = until(lambda job_id=job_id: (j := client.job(job_id)).state == "paused" and j, 60)
        assert 0 < job.step < _LONG["max_steps"] * _LONG["warmup_ratio"], job
    compared = next(client.jobs(method="ipo", state="succeeded"))
    client.compare(compared.id, "ما عاصمة مصر؟", max_length=8)


def main() -> None:
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data, models = work / "data", work / "models"
        make_model(models / MODEL)
        stack = StackUnderTest(data)
        stack.models_dir = models
        with stack, Client(stack.url) as client:
            fill(client, work)
        for left in ("valkey", "logs", "cache", "samples", "stack.lock"):
            path = data / left
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for path in data.glob("runs/*/attempt-*/attempt.json"):
            path.unlink()
        with tarfile.open(HERE / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(data, "data")
            archive.add(models, "models")


if __name__ == "__main__":
    main()
