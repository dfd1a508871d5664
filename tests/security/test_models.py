"""Models and checkpoints are untrusted files: no code of theirs runs, and nothing is unpickled."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jobs.places import find_model
from jobs.settings import Settings
from tests.conftest import TINY_MODEL
from tests.fakes import RecordingObserver
from tests.training import config
from trainer_core import PreferenceTrainer
from trainer_core.checkpoints import MANIFEST, newest_verified, verified_step
from trainer_core.errors import ModelNotFound, ModelRefused, SpecInvalid, Stopped
from trainer_core.models import load_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "jobs", "tafdil", "trainer_core", "worker")


class Touch:
    """Unpickled, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self._canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mknod, (self._canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the small model, to be made hostile."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))


def edit(path: Path, **fields: Any) -> None:
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **fields}), encoding="utf-8")


def write_code(folder: Path, canary: Path) -> None:
    for name in ("evil.py", "custom_generate/generate.py", "configuration_qwen2.py", "modeling_qwen2.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"import os\nos.mknod({str(canary)!r})\n", encoding="utf-8")


def write_pickles(folder: Path, canary: Path) -> None:
    for name in ("pytorch_model.bin", "adapter_model.bin"):
        torch.save({"weight": Touch(canary)}, folder / name)


def shards(folder: Path, place: str) -> None:
    """Weights in shards, one of which lies elsewhere."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, target, {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, place)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


HOSTILE: dict[str, Callable[[Path], None]] = {
    "code for the configuration": lambda m: edit(m / "config.json", auto_map={"AutoConfig": "evil.Config"}),
    "code for the model": lambda m: edit(m / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}),
    "code for another type": lambda m: edit(m / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"}),
    "code elsewhere": lambda m: edit(m / "config.json", auto_map={"AutoConfig": "someone/else--evil.Config"}),
    "code for the tokenizer": lambda m: edit(m / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}),
    "code deep inside": lambda m: edit(m / "config.json", text_config={"inner": [{"auto_map": {"AutoConfig": "evil.C"}}]}),
    "trust": lambda m: edit(m / "config.json", trust_remote_code=True),
    "trust deep inside": lambda m: edit(m / "config.json", sub={"trust_remote_code": "yes"}),
    "a kernel of a hub": lambda m: edit(m / "config.json", _attn_implementation="someone/kernel"),
    "a kernel inside": lambda m: edit(m / "config.json", text_config={"_attn_implementation_internal": "someone/k:f"}),
    "a kernel that is no text": lambda m: edit(m / "config.json", attn_implementation={"": "someone/kernel"}),
    "a configuration elsewhere": lambda m: edit(m / "config.json", configuration_files=["config./../../x.json"]),
    "a tokenizer elsewhere": lambda m: edit(m / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.9.json"]),
    "a configuration for one version": lambda m: edit(m / "config.4.0.0.json", auto_map={"AutoConfig": "evil.Config"}),
    "shards above": lambda m: shards(m, "../stolen.safetensors"),
    "shards below": lambda m: shards(m, "below/model.safetensors"),
    "shards at an absolute place": lambda m: shards(m, str(m.parent / "stolen.safetensors")),
    "a base elsewhere": lambda m: edit(m / "adapter_config.json", base_model_name_or_path=str(TINY_MODEL), peft_type="LORA"),
    "a configuration that is none": lambda m: (m / "config.json").write_text("{", encoding="utf-8") and None,
}


def loads(model: Path) -> list[Callable[[], Any]]:
    """Each way by which the product opens a model's files."""
    settings = config("ipo", model.parent / "out", model_name=str(model))
    reference = config("ipo", model.parent / "out", ref_model_name=str(model), use_lora=True)
    return [
        lambda: (load_tokenizer(str(model)), load_model(str(model), torch.float32)),
        lambda: PreferenceTrainer(settings, observer=RecordingObserver()).load(),
        lambda: PreferenceTrainer(reference, observer=RecordingObserver()).setup_reference_model(),
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_that_brings_code_or_leads_elsewhere_is_refused(model: Path, canary: Path, name: str) -> None:
    write_code(model, canary)
    write_pickles(model, canary)
    HOSTILE[name](model)
    for load in loads(model):
        with pytest.raises(ModelRefused):
            load()
    assert not canary.exists()


def test_a_model_is_loaded_beside_code_and_pickles_that_nothing_names(model: Path, canary: Path) -> None:
    write_code(model, canary)
    write_pickles(model, canary)
    model_with_all = load_model(str(model), torch.float32)
    assert model_with_all.generate(torch.tensor([[5, 6]]), max_new_tokens=1).shape == (1, 3)
    load_tokenizer(str(model))
    assert not canary.exists()


def test_a_model_of_pickles_alone_is_refused(model: Path, canary: Path) -> None:
    (model / "model.safetensors").unlink()
    write_pickles(model, canary)
    for load in loads(model):
        with pytest.raises(ModelRefused):
            load()
    assert not canary.exists()


@pytest.mark.parametrize("harm", ["pickle", "megatron", "index"])
def test_an_adapter_that_brings_code_is_refused(tmp_path: Path, canary: Path, harm: str) -> None:
    adapter = tmp_path / "adapter"
    trained = PreferenceTrainer(config("ipo", tmp_path / "out", max_steps=1), observer=RecordingObserver())
    trained.save_model(str(adapter))
    again = config("ipo", tmp_path / "again", adapter_name=str(adapter))
    PreferenceTrainer(again, observer=RecordingObserver()).load()
    write_code(adapter, canary)
    write_pickles(adapter, canary)
    if harm == "pickle":
        (adapter / "adapter_model.safetensors").unlink()
    elif harm == "megatron":
        edit(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil")
    else:
        edit(adapter / "adapter_config.json", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ModelRefused):
        PreferenceTrainer(again, observer=RecordingObserver()).load()
    assert not canary.exists()


def test_the_canary_would_be_made(model: Path, canary: Path) -> None:
    """What the tests above plant does what it says, where it is let."""
    write_pickles(model, canary)
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert canary.exists()
    canary.unlink()
    write_code(model, canary)
    subprocess.run([sys.executable, str(model / "evil.py")], check=True)
    assert canary.exists()


def test_every_load_of_a_model_looks_at_its_files_first() -> None:
    """`from_pretrained` and `load_adapter` stand inside `with loading(...)`, and never trust remote code."""
    calls = 0
    for path in (ROOT / "trainer_core").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = {
            id(call)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any("loading(" in ast.unparse(item) for item in block.items)
            for call in ast.walk(block)
        }
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if call.func.attr in ("from_pretrained", "load_adapter", "from_config"):
                calls += 1
                assert id(call) in guarded, f"{path.name}:{call.lineno}"
                told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                if ast.unparse(call.func).startswith("Auto"):
                    assert told["trust_remote_code"] == "False", f"{path.name}:{call.lineno}"
                if ast.unparse(call.func) == "AutoModelForCausalLM.from_pretrained":
                    assert told["use_safetensors"] == "True"
    assert calls >= 8


BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy"}
BANNED_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.save"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "numpy.load", "np.load", "pandas.read_pickle"),
}


def banned(source: str) -> list[str]:
    """What of a program runs what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in BANNED_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).split(".")[0] in BANNED_MODULES else []
        elif isinstance(node, ast.Call):
            name, told = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            is_torch = name == "torch.load" and told.get("weights_only") != "True"
            is_shell = told.get("shell", "False") != "False"
            found += [name] if name in BANNED_CALLS or is_torch or is_shell else []
    return found


def test_nothing_of_the_product_unpickles_evaluates_or_asks_a_shell() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    assert {path.name: found for path in files if (found := banned(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import torch; torch.load(x)",
        "torch.load(x, weights_only=False)",
        "yaml.load(x)",
        "eval(x)",
        "exec(x)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
    ],
)
def test_the_ban_itself_can_fail(source: str) -> None:
    assert banned(source)


def test_no_package_that_loads_kernels_of_a_hub_is_installed() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not [line for line in pins.splitlines() if line.startswith("kernels==")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a training that was stopped after a step."""
    folder = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.raises(Stopped):
        PreferenceTrainer(config("ipo", folder, max_steps=3), observer=RecordingObserver(stop_after=1)).train()
    return folder


@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt", "scheduler.pt", "adapter_model.bin", "pytorch_model.bin"])
def test_a_malicious_checkpoint_runs_nothing(written: Path, tmp_path: Path, canary: Path, name: str) -> None:
    """Neither as it is planted, nor with a manifest that was made to fit."""
    stopped = Path(shutil.copytree(written, tmp_path / "out")) / "checkpoint-1"
    settings = config("ipo", tmp_path / "out", max_steps=3)
    assert verified_step(stopped) == 1
    (stopped / name).write_bytes(pickle.dumps(Touch(canary)))
    assert newest_verified([stopped.parent]) is None
    trainer = PreferenceTrainer(settings, observer=RecordingObserver())
    with pytest.raises(SpecInvalid, match="is missing or incomplete, or was changed"):
        trainer.train(resume_from_checkpoint=stopped)
    torch.save(Touch(canary), stopped / name)
    if name.startswith("adapter"):
        (stopped / "adapter_model.safetensors").unlink()
    _sign(stopped)
    error, message = REFUSALS.get(name, (pickle.UnpicklingError, "Weights only load failed"))
    assert verified_step(stopped) == (None if error is SpecInvalid else 1)
    with pytest.raises(error, match=message):
        trainer.train(resume_from_checkpoint=stopped)
    assert not canary.exists()


REFUSALS: dict[str, tuple[type[Exception], str]] = {
    "adapter_model.bin": (SpecInvalid, "is missing or incomplete, or was changed"),
    "pytorch_model.bin": (ModelRefused, "the checkpoint .* could not be loaded: “UnpicklingError: Weights only load failed"),
}


def _sign(checkpoint: Path) -> None:
    """A manifest that fits, as somebody could write who can write there at all."""
    from hashlib import sha256

    found = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MANIFEST]
    files = {path.relative_to(checkpoint).as_posix(): sha256(path.read_bytes()).hexdigest() for path in found}
    edit(checkpoint / MANIFEST, files=files)


def test_a_checkpoint_that_lists_nothing_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"x")
    edit(folder / MANIFEST, step=7, files={})
    assert verified_step(folder) is None


def test_a_directory_of_the_worker_is_no_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes a directory of that name, where it runs, before it asks the hub."""
    shutil.copytree(TINY_MODEL, tmp_path / "someone" / "model")
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=tmp_path / "data", allow_hub=True)
    assert find_model(settings, "someone/other") == "someone/other"
    with pytest.raises(ModelNotFound, match="the directory that the service runs in"):
        find_model(settings, "someone/model")


@pytest.mark.parametrize("module", ["worker.check_worker", "worker.generation_worker"])
@pytest.mark.parametrize("allowed", [False, True])
def test_workers_ask_no_hub_unless_it_is_allowed(tmp_path: Path, module: str, allowed: bool) -> None:
    code = (
        f"import {module}; from celery.signals import worker_init; worker_init.send(sender=None); "
        "import huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE)"
    )
    variables = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    variables |= {"TAFDIL_DATA_DIR": str(tmp_path), "TAFDIL_ALLOW_HUB": str(allowed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(not allowed)]
