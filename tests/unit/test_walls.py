"""The walls between the rooms: what loads torch, how files are named, how long they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

from jobs.states import FINAL, TRANSITIONS, JobState
from trainer_core.errors import CODES, TafdilError, error_dict

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


# Each is run after those before it.
WITHOUT_TORCH = (
    "from api.app import create_app; create_app()",
    "import jobs.service, jobs.queue, jobs.spec",
    "import tafdil.cli, tafdil.demo, tafdil.local_stack",
    "import trainer_core, trainer_core.config, trainer_core.rows, trainer_core.errors",
    "import worker.tasks, worker.supervisor, worker.dispatcher",
    "import worker.check_worker, worker.generation_worker, worker.export_worker, worker.answering",
)


def loaded_by(*statements: str) -> dict[str, list[str]]:
    """The heavy packages that a fresh interpreter holds after each statement."""
    code = f"""
import sys, json
loaded = {{}}
for statement in {statements!r}:
    exec(statement)
    loaded[statement] = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(loaded))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_these_never_load_torch() -> None:
    assert loaded_by(*WITHOUT_TORCH) == {statement: [] for statement in WITHOUT_TORCH}


def test_the_check_itself_can_fail() -> None:
    (loaded,) = loaded_by("import trainer_core.models").values()
    assert "torch" in loaded


def test_the_api_starts_and_answers_where_torch_is_not_installed(tmp_path: Path) -> None:
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from fastapi.testclient import TestClient
from jobs.settings import Settings
from api.app import create_app
from tests.fakes import FakeQueue
with TestClient(create_app(Settings(data_dir={str(tmp_path)!r}), FakeQueue()), base_url="http://127.0.0.1") as client:
    assert client.get("/healthz").json() == {{"status": "ok"}}
    spec = {{"method": "kto", "model_name": "tafdil/tiny-arabic-qwen-2", "dataset_path": "samples/kto_train.jsonl"}}
    reply = client.post("/v1/jobs", json=spec)
    assert reply.status_code == 202, reply.text
    assert client.get("/v1/jobs").json()["jobs"][0]["id"] == reply.json()["id"]
print("answered")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "answered" in result.stdout


def source_files() -> list[Path]:
    folders = ("api", "benchmarks", "jobs", "tafdil", "trainer_core", "worker", "examples", "tests")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_files_are_short_and_named_for_what_they_hold() -> None:
    for path in source_files():
        assert path.stem not in ("utils", "helpers", "common", "misc"), path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path


def test_sql_is_in_the_repository_alone() -> None:
    allowed = {"jobs/database.py", "jobs/records.py"}
    for path in source_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("jobs/repository/", "jobs/migrations/", "benchmarks/", "tests/")) or name in allowed:
            continue
        imports = re.findall(r"^from sqlalchemy\S* import (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not re.search(r"\b(select|insert|update|delete|text)\b", " ".join(imports)), name


def test_a_final_state_is_never_left() -> None:
    for cause, (sources, _) in TRANSITIONS.items():
        assert not sources & FINAL, cause
    assert {target for _, target in TRANSITIONS.values()} | {JobState.QUEUED} == set(JobState)


def test_every_error_of_the_library_has_a_known_code() -> None:
    def below(kind: type[TafdilError]) -> set[type[TafdilError]]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    for kind in below(TafdilError):
        error = kind("what happened")
        assert error.code in CODES
        assert error.as_dict() == error_dict(error.code, "what happened")
        assert isinstance(error.retryable, bool)
        assert error.hint


def test_what_ships_is_small() -> None:
    shipped = ROOT / "tafdil" / "shipped"
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) <= 5 * 10**6
