"""A service's database with a little of everything, so that requests find what they name."""

import hashlib
from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient

from api.app import create_app
from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.database import Database
from jobs.places import run_dir
from jobs.repository import artifacts, jobs, metrics, tasks
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Cause, TaskKind
from tests.api import BASE_URL, run
from tests.conftest import DATA
from tests.fakes import FakeQueue
from trainer_core.errors import error_dict

MODEL = "attempt-1/output/adapter_model.safetensors"
CHECKPOINT = "attempt-1/output/checkpoint-4/optimizer.pt"
FILES = {MODEL: ArtifactKind.MODEL, CHECKPOINT: ArtifactKind.CHECKPOINT, "attempt-1/log.txt": ArtifactKind.LOG}
TENANT = "default"


@dataclass(frozen=True)
class Seeds:
    """Ids of what is there."""

    trained_job: str
    """Has files, metrics, and comparisons that are answered, refused and waiting."""
    jobs: list[str]
    """One in every state, the trained one among them."""
    doomed_jobs: list[str]
    """For what deletes them."""
    paused_jobs: list[str]
    waiting_jobs: list[str]
    artifacts: list[str]
    comparisons: list[str]
    held_outs: list[str]
    """Comparisons over held-out prompts, answered and waiting."""
    tasks: list[str]
    waiting_tasks: list[str]
    """For what cancels them."""
    dataset: str
    doomed_datasets: list[str]
    api_keys: list[str]


_COUNTS = {"asked": 1, "prompts": 1, "better": 1, "ties": 0, "worse": 0, "broken": 0}
_SIDES = {"trained_model_response": "الرباط", "reference_model_response": "فاس"}
COUNTED = {
    **_COUNTS,
    "share": 1.0,
    "low": 0.2,
    "high": 1.0,
    "answers": [{"row": 1, "prompt": "سؤال", **_SIDES, "margin": 1.0, "flags": [], "outcome": "better"}],
}


def sow(settings: Settings, spec: dict[str, Any], key: str) -> Seeds:
    """Fills the database of the settings, as the tenant of the key."""
    with TestClient(create_app(settings, FakeQueue()), BASE_URL, headers={"Authorization": f"Bearer {key}"}) as client:
        database: Database = client.app.state.service.database  # type: ignore[attr-defined]
        trained = _trained(settings, database, client, spec)
        doomed = [_trained(settings, database, client, spec) for _ in range(8)]
        failed = run(database, client, spec)
        with database.transaction() as session:
            jobs.finish(session, failed, Cause.FAIL, {"error": error_dict("oom_gpu", "the GPU is full")})
        running = run(database, client, spec)
        cancelled, queued, *more = (client.post("/v1/jobs", json=spec).json()["id"] for _ in range(20))
        paused, waiting = more[:8], more[8:]
        assert {client.post(f"/v1/jobs/{job_id}/pause").status_code for job_id in paused} == {202}
        assert client.post(f"/v1/jobs/{cancelled}/cancel").status_code == 202
        rows = (DATA / "pairs_train.jsonl").read_bytes()
        datasets = [
            client.post("/v1/datasets?on_invalid=skip", content=rows + b'{"prompt": 1}\n').json()["id"] for _ in range(6)
        ]
        comparisons = [_asked(client, trained, number) for number in range(3)]
        with database.transaction() as session:
            for result, error in (({"trained_model_response": "الرباط"}, None), (None, error_dict("internal", "broken"))):
                claimed = tasks.claim_next(session, [TaskKind.COMPARE], 60)
                assert claimed
                tasks.finish(session, claimed, result, error)
        asked = f"/v1/jobs/{trained}/compare/held_out?wait_s=0"
        held_outs = [client.post(asked, json={"prompts": n}).json()["id"] for n in (4, 8)]
        with database.transaction() as session:
            claimed = tasks.claim_next(session, [TaskKind.HELD_OUT], 60)
            assert claimed
            tasks.finish(session, claimed, COUNTED)
        preview = client.post(f"/v1/datasets/{datasets[0]}/preview?wait_s=0", json={"model_name": spec["model_name"]})
        where, model = f"/v1/datasets/{datasets[0]}/preview?wait_s=0", spec["model_name"]
        waiting_tasks = [client.post(where, json={"model_name": model, "rows": n}).json()["id"] for n in range(6, 14)]
        api_keys = [client.post("/v1/keys", json={}).json()["id"] for _ in range(4)]
        files = client.get(f"/v1/jobs/{trained}/artifacts").json()["artifacts"]
    return Seeds(
        trained,
        [trained, failed.job_id, running.job_id, paused[0], cancelled, queued],
        doomed,
        paused[1:],
        waiting,
        [file["id"] for file in files],
        comparisons,
        held_outs,
        [*comparisons, *held_outs, preview.json()["id"]],
        waiting_tasks,
        datasets[0],
        datasets[1:],
        api_keys,
    )


def _asked(client: TestClient, job_id: str, number: int) -> str:
    asked = {"prompt": f"ما عاصمة المغرب؟ {number}"}
    return client.post(f"/v1/jobs/{job_id}/compare?wait_s=0", json=asked).json()["id"]


def _trained(settings: Settings, database: Database, client: TestClient, spec: dict[str, Any]) -> str:
    """A job that succeeded, with its files and curves."""
    fence: Fence = run(database, client, spec)
    kept = []
    for name, kind in FILES.items():
        place = run_dir(settings, fence.job_id) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        data = f"{name} ".encode() * 50
        place.write_bytes(data)
        kept.append(ArtifactFile(kind, name, len(data), hashlib.sha256(data).hexdigest()))
    with database.transaction() as session:
        metrics.add(session, fence.job_id, 1, 1, {"loss": 0.5, "grad_norm": None})
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": f"{fence.job_id}/attempt-1/output"})
        artifacts.keep(session, TENANT, fence.job_id, kept, [1])
    return fence.job_id
