"""Real trainings that are forked, next to some that start by themselves: the same weights, and nothing left to import."""

import json
import shutil
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA, TINY_MODEL
from trainer_core import preloading
from worker import warm_start
from worker.training_process import TrainingProcess, whole_environment
from worker.warm_start import ColdReason, ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork servers need Linux")
ROOT = Path(__file__).resolve().parents[2]
CHILD, OBSERVED = (sys.executable, "-m", "worker.child"), (sys.executable, "-m", "tests.rig.late_imports")
SPEC: dict[str, Any] = {
    "method": "ipo",
    "model_name": "tafdil/tiny-arabic-qwen-2",
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "learning_rate_cap": None,
    "gradient_accumulation_steps": 1,
    "lora_dropout": 0.1,
}
# Names that transformers makes up while it looks for a tokenizer.
_PROBED = {"transformers.models.audioflamingo3", "transformers.models.qwen2.tokenization_qwen2_fast"}


@dataclass
class Trainings:
    """Attempts in directories of their own."""

    folder: Path
    server: ForkServer
    reports: list[dict[str, Any]] = field(default_factory=list)

    def run(self, name: str, *, warm: bool, after: str | None = None) -> Path:
        """The output of an attempt; `after`: of an earlier one's first checkpoint."""
        job = self.folder / name
        attempt = job / "attempt-2"
        attempt.mkdir(parents=True)
        if after:
            checkpoint = self.folder / after / "attempt-2" / "output" / "checkpoint-2"
            shutil.copytree(checkpoint, job / "attempt-1" / "output" / "checkpoint-2")
        places = {
            "dataset_path": str(DATA / "pairs_train.jsonl"),
            "datasets": None,
            "eval_dataset_path": None,
            "output_dir": str(attempt / "output"),
        }
        models = {SPEC["model_name"]: str(TINY_MODEL)}
        plan = {"job_id": name, "attempt": 2, "spec": SPEC, "places": places, "models": models, "run_dir": str(job)}
        (attempt / "attempt.json").write_text(json.dumps({**plan, "start_from": None, "silence_s": 60}))
        command, server = (OBSERVED, self.server) if warm else (CHILD, ColdReason.SWITCHED_OFF)
        process = TrainingProcess(command, attempt, {}, None, server=server)
        assert (process.cold_reason is None) == warm
        self.reports = []
        while (heard := process.hear(0.2)) is not None:
            self.reports += heard
        assert process.end() == (0, []), (attempt / "log.txt").read_text()
        return attempt / "output"


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Generator[Trainings]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(warm_start, "_PER_RUN", warm_start._PER_RUN | {"PYTEST_CURRENT_TEST"})
        server = ForkServer(OBSERVED, whole_environment({}))
        server.start()
        yield Trainings(tmp_path_factory.mktemp("trainings"), server)
        server.close()


def weights(output: Path) -> dict[str, bytes]:
    """What was trained: the adapter and the optimizer's state after the last step."""
    return {
        "adapter": (output / "adapter_model.safetensors").read_bytes(),
        "optimizer": (output / "checkpoint-4" / "optimizer.pt").read_bytes(),
    }


def test_a_server_does_without_a_module_that_another_version_of_a_library_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch 2.11 no run started warm, as one of its modules came with a later version."""
    monkeypatch.setattr(preloading, "_OF_LIBRARIES", ("torch.profiler.of_a_later_version", "numpy.ctypeslib"))
    preloading.preload()


def test_a_run_may_begin_in_one_way_and_resume_in_the_other(trainings: Trainings) -> None:
    """Dropout draws at every step, so the states of all generators count too."""
    cold = weights(trainings.run("cold", warm=False))
    assert weights(trainings.run("warm", warm=True)) == cold
    (first,) = [report for report in trainings.reports if report["type"] == "first_step"]
    assert first["seconds"]["imports"] < first["cpu_s"]
    imported = json.loads((trainings.folder / "warm" / "attempt-2" / "imported.json").read_text())
    libraries = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "trainer_core", "jobs")
    assert {name for name in imported if name.split(".")[0] in libraries} <= _PROBED, "add it to trainer_core.preloading"
    assert weights(trainings.run("cold, then warm", warm=True, after="cold")) == cold
    assert [report["step"] for report in trainings.reports if report["type"] == "checkpoint_loaded"] == [2]
    assert weights(trainings.run("warm, then cold", warm=False, after="warm")) == cold
    assert [report["step"] for report in trainings.reports if report["type"] == "checkpoint_loaded"] == [2]
