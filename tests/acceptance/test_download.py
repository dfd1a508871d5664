"""What a user takes home: files that are loaded elsewhere, by the lines of their cards, answer as `/compare` did."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load
from safetensors.torch import load_file, save_file

from tafdil import Client
from tests.conftest import DATA, TINY_MODEL
from tests.stack import StackUnderTest, until

ROOT = Path(__file__).parents[2]
FOREIGN = Path(__file__).with_name("foreign_load.py")
MODELS = {"tafdil/tiny-arabic-qwen-2": "bfloat16", "tafdil/tiny-arabic-qwen-2-exact": "float32"}
WAYS = ("adapter", "merged", "checkpoint")
MAX_LENGTH = 20
STEPS = 8
# Between two neighbouring numbers, as a share of the larger one. In float32 no two tokens here are that close.
ROUNDING = {"bfloat16": 2**-7, "float32": 2**-23}


@dataclass
class Taken:
    """One job's files on the user's machine."""

    folder: Path
    answers: list[dict[str, Any]]

    @property
    def folders(self) -> dict[str, Path]:
        (merged,) = self.folder.glob("merged-*")
        return {"adapter": self.folder, "merged": merged, "checkpoint": self.folder / f"checkpoint-{STEPS}"}


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    rows = [json.loads(line) for line in (DATA / "pairs_held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(row["prompt"] for row in rows))[:10]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The service's directories."""
    folder = tmp_path_factory.mktemp("service")
    return {"data": folder / "data", "models": folder / "models"}


@pytest.fixture(scope="module")
def taken(places: dict[str, Path], prompts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Taken]:
    """A job on a base that is stored in bfloat16, and one on the same in float32: trained, asked, merged and downloaded."""
    plain, exact = (places["models"] / name for name in MODELS)
    shutil.copytree(TINY_MODEL, plain)
    shutil.copytree(TINY_MODEL, exact)
    weights = {name: tensor.float() for name, tensor in load_file(TINY_MODEL / "model.safetensors").items()}
    save_file(weights, exact / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((exact / "config.json").read_text(encoding="utf-8"))
    (exact / "config.json").write_text(json.dumps({**config, "dtype": "float32"}), encoding="utf-8")
    (exact / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Exact\n", encoding="utf-8")
    stack = StackUnderTest(places["data"])
    stack.models_dir = places["models"]
    few = tmp_path_factory.mktemp("rows") / "held_out.jsonl"
    few.write_text("".join((DATA / "pairs_held_out.jsonl").open(encoding="utf-8").readlines()[:8]), encoding="utf-8")
    with stack, Client(stack.url) as client:
        until(client.ready)
        data = [client.upload_dataset(path)["id"] for path in (DATA / "pairs_train.jsonl", few)]
        jobs = [client.submit(spec(name, *data)) for name in MODELS]
        found = {}
        for name, job in zip(MODELS, jobs, strict=True):
            done = client.wait(job["id"], 400)
            assert done["state"] == "succeeded", done
            answers = [client.compare(job["id"], prompt, max_length=MAX_LENGTH)["result"] for prompt in prompts]
            until(lambda job=job: client.merge(job["id"], wait_s=60)["result"])
            home = tmp_path_factory.mktemp("home")
            kinds = {file["kind"] for file in client.artifacts(job["id"])}
            client.download(job["id"], home, kinds=sorted(kinds))
            assert kinds == {"model", "checkpoint", "merged", "log", "metrics", "manifest"}
            found[name] = Taken(home, answers)
    return found


def spec(model: str, train: str, held_out: str) -> dict[str, Any]:
    return {
        "method": "ipo",
        "model_name": model,
        "dataset_id": train,
        "eval_dataset_id": held_out,
        "learning_rate": 3e-3,
        "learning_rate_cap": None,
        "max_steps": STEPS,
        "save_steps": STEPS // 2,
        "eval_on_start": False,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "sample_generations": 0,
    }


def cached(models: Path, home: Path) -> None:
    """Puts models into a cache of the hub's, as a download of each would."""
    for name in MODELS:
        folder, revision = home / "hub" / f"models--{name.replace('/', '--')}", "0123456789" * 4
        shutil.copytree(models / name, folder / "snapshots" / revision)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(revision, encoding="utf-8")


@pytest.fixture(scope="module")
def elsewhere(
    taken: dict[str, Taken], places: dict[str, Path], prompts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a process with transformers and peft alone answers, by folder, after the service and its models are gone."""
    home = tmp_path_factory.mktemp("hub")
    cached(places["models"], home)
    for place in places.values():
        place.rename(place.with_name(f"{place.name}-gone"))
    folders = [str(folder) for one in taken.values() for folder in one.folders.values()]
    asked = home / "asked.json"
    asked.write_text(json.dumps({"prompts": prompts, "folders": folders, "max_length": MAX_LENGTH}), encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-I", str(FOREIGN), str(asked)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_a_stranger_gets_the_answers_of_the_comparison(
    model: str, way: str, taken: dict[str, Taken], elsewhere: dict[str, Any], prompts: list[str]
) -> None:
    dtype = MODELS[model]
    answered = elsewhere[str(taken[model].folders[way])]
    for prompt, compared, found in zip(prompts, taken[model].answers, answered, strict=True):
        assert compared["dtype"] == dtype
        assert found["dtype"] == f"torch.{'float32' if way == 'merged' else dtype}"
        answer, texts = compared["trained_model_response"], found["texts"]
        if texts[-1].strip() == answer:
            print(f"{prompt} {answer}")
            continue
        same = max(count for count, text in enumerate(texts) if answer.startswith(text.strip()))
        gap, best = found["gaps"][same], found["best"][same]
        print(f"{prompt} {answer}\n  {texts[-1]}")
        print(f"  differs from token {same} on, whose best logit is {best:.4g} and the second best {gap:.2g} below")
        assert gap < ROUNDING[dtype] * abs(best), f"{texts[-1]!r} in place of {answer!r}"


@pytest.mark.parametrize("model", MODELS)
def test_no_file_names_a_place_on_the_machine(model: str, taken: dict[str, Taken], places: dict[str, Path]) -> None:
    own = [*places.values(), ROOT, TINY_MODEL, Path.home(), Path(sys.prefix), Path(tempfile.gettempdir())]
    names = [f"{place}/".encode() for place in own] + [str(place).encode() for place in places.values()]
    files = [path for path in taken[model].folder.rglob("*") if path.is_file()]
    assert len(files) > 30, "checkpoints and merged weights, too"
    leaks = {(path.name, name) for path in files for name in names if name in path.read_bytes()}
    assert not leaks


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_every_download_has_a_card(model: str, way: str, taken: dict[str, Taken]) -> None:
    folder = taken[model].folders[way]
    card, matter = (folder / "README.md").read_text(encoding="utf-8"), metadata_load(folder / "README.md")
    assert matter is not None
    assert matter["base_model"] == model
    assert matter["base_model_relation"] == ("finetune" if way == "merged" else "adapter")
    assert matter["library_name"] == ("transformers" if way == "merged" else "peft")
    assert "ipo" in matter["tags"]
    is_known = model.endswith("exact")
    assert (matter["license"], matter.get("license_name")) == (("apache-2.0", None) if is_known else ("other", "unknown"))
    assert "eval_preference_accuracy" in card
    assert "eval_margin_accuracy" in card
    assert "640 rows trained on, " in card
    if way == "merged":
        told = json.loads((folder / "merged.json").read_text(encoding="utf-8"))
        assert told["weights_sha256"] in card
        return
    assert json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == model
    if way == "adapter":
        proofs = [answer["proof"] for answer in taken[model].answers]
        assert {proof["trained_fingerprint"] for proof in proofs} <= set(re.findall(r"[0-9a-f]{64}", card))
