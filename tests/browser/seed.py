"""A service with something to see: a job in every state, curves, samples, files, comparisons, datasets. No workers."""

from dataclasses import dataclass, field
from typing import Any

import httpx
from sqlalchemy import insert, select

from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.places import run_dir
from jobs.records import JobRecord, MetricRecord
from jobs.repository import artifacts, attempts, jobs, metrics, tasks
from jobs.repository.jobs import Fence
from jobs.states import Cause, Request, TaskKind
from tests.conftest import DATA
from tests.live import Live
from tests.stack import until
from tests.training import train_file
from trainer_core.errors import error_dict

PROOF = {
    "trained_fingerprint": "a" * 64,
    "reference_fingerprint": "b" * 64,
    "template_fingerprint": "c" * 64,
    "max_logit_difference": 5.7,
    "mean_kl": 0.87,
    "function_sha256": "d" * 64,
    "covers": "function",
    "adapter_has_no_effect": False,
}
PART = {
    "rows": 640,
    "total_tokens": 51842,
    "prompt_tokens": {"median": 25, "p95": 28, "max": 28},
    "answer_tokens": {"median": 15, "p95": 19, "max": 20},
    "prompts_cut": 2,
    "completions_cut": 1,
    "first_rows_cut": [3, 7],
    "rows_dropped": 0,
    "first_rows_dropped": [],
    "findings": [
        {"code": "answers_equal", "rows": 2, "first_rows": [11, 12], "dropped": True},
        {"code": "special_tokens_in_text", "rows": 1, "first_rows": [40], "dropped": False},
    ],
}


REVIEW: dict[str, Any] = {
    "rows_from": "validation",
    "rows": 96,
    "slices": [{"name": "egyptian", "rows": 60, "margin_accuracy": 0.9}, {"name": None, "rows": 36, "margin_accuracy": 0.8}],
    "hardest_rows": [{"row": 12, "label": None, "loss": 2.25}],
    "held_out_rows": [3, 12],
    "reviewed_answers": 64,
    "shortcuts": [{"trait": "commas", "chosen_has_more": True, "share": 0.97, "rows": 31, "margin_left": 0.12}],
    "spelling": [{"spelling": "hamza_letters", "answers": 50, "before": 4.5, "after": 4.75, "shift": 0.25}],
}
EVIDENCE = {
    "rows_from": "validation",
    "rows": 64,
    "mean_kl": 0.412,
    "shift": 0.31,
    "margin": {"mean": 2.13, "low": 1.87, "high": 2.39},
    "samples": {
        "prompts": 4,
        "differing": 0.75,
        "repetition": 0.02,
        "repetition_before": 0.0,
        "foreign_script": 0.0,
        "length_ratio": 1.14,
    },
    "decided_by": [],
}


@dataclass
class Seeded:
    """What there is, by what it shows."""

    live: Live
    jobs: dict[str, str] = field(default_factory=dict)
    dataset: str = ""

    def submit(self, name: str | None, method: str = "ipo", **fields: Any) -> str:
        spec = {
            "method": method,
            "name": name,
            "model_name": "tafdil/tiny-arabic-qwen-2",
            "dataset_path": f"samples/{train_file(method)}",
            "learning_rate": 1e-3,
            "learning_rate_cap": None,
            "max_steps": 60,
        }
        reply = httpx.post(f"{self.live.url}/v1/jobs", json={**spec, **fields})
        assert reply.status_code == 202, reply.text
        return reply.json()["id"]

    def claim(self, job_id: str) -> Fence:
        """The job, taken by a worker that does not exist. It must be the best one of the queue."""
        with self.live.database.transaction() as session:
            job = jobs.claim_next(session, "worker-1", 3600)
            assert job
            assert job.id == job_id
            return Fence(job.id, job.attempt, job.lease_token or "")

    def train(self, fence: Fence, steps: int, total: int = 60, every: int = 1) -> None:
        """Reports of a training up to a step."""
        with self.live.database.transaction() as session:
            jobs.record(session, fence, "phase", {"phase": "training"}, {"phase": "training"})
            report = {"train": PART, "validation": PART, "rows_trained_on": 640, "rows_validated_on": 96}
            report |= {"rows_held_back": 0, "rows_left_over": 0}
            jobs.record(session, fence, "data", {"report": report})
            jobs.set_progress(session, fence, steps, total, float(total - steps), tokens=1000 * steps)
            attempts.set_first_step(session, fence.job_id, fence.attempt, 0)
            for step in range(0, steps + 1, every):
                values = {"loss": 1 / (step + 1), "rewards/margins": step / 10, "rewards/chosen": step / 20}
                values |= {"rewards/rejected": -step / 20, "kl": step / 100, "rewards/accuracies": step / (step + 1)}
                values |= {"learning_rate": 1e-3 / (step + 1)}
                metrics.add(session, fence.job_id, fence.attempt, step, values)
                jobs.record(session, fence, "metrics", {"step": step, "values": values})
            for step in (0, 20, 40):
                said = [{"prompt": "ما عاصمة المغرب؟", "response": f"الرباط، في الخطوة {step}.", "tokens": 6}]
                jobs.record(session, fence, "samples", {"step": step, "samples": said})
            jobs.record(session, fence, "checkpoint", {"step": steps})
            jobs.keep_checkpoint(session, fence, steps)
        log = run_dir(self.live.settings, fence.job_id) / f"attempt-{fence.attempt}" / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("loading tafdil/tiny-arabic-qwen-2\nstep 1 loss 0.5\n", encoding="utf-8")

    def finish(self, fence: Fence, cause: Cause, **values: Any) -> None:
        with self.live.database.transaction() as session:
            assert jobs.finish(session, fence, cause, values, {"device": {"name": "cpu"}}, reason="seeded")

    def succeed(self, fence: Fence) -> None:
        path = f"{fence.job_id}/attempt-1/output"
        with self.live.database.transaction() as session:
            jobs.record(session, fence, "effect", {"effect": "changed", "evidence": EVIDENCE})
            jobs.record(session, fence, "review", {"review": REVIEW})
        metadata = {"training_method": "ipo", "beta": 0.1, "effect": "changed", "effect_evidence": EVIDENCE}
        self.finish(fence, Cause.FINISH, artifact_path=path, effect="changed", metadata_=metadata)
        file = ArtifactFile(ArtifactKind.MODEL, "attempt-1/output/adapter_model.safetensors", 629_760, "d" * 64)
        with self.live.database.transaction() as session:
            artifacts.add(session, "default", fence.job_id, [file])

    def compared(self, job_id: str, prompt: str, reference: str, trained: str, **more: Any) -> None:
        """A comparison that was answered."""
        answer = {
            "prompt": prompt,
            "trained_model_response": trained,
            "reference_model_response": reference,
            "seed": None,
            "dtype": "bfloat16",
            "proof": PROOF,
            "preference_score": 0.98,
            "improvement_detected": True,
        }
        request = {"prompt": prompt, "max_length": 64, "temperature": 0.0, "top_p": 1.0, "seed": None}
        with self.live.database.transaction() as session:
            tasks.insert(session, TaskKind.COMPARE, "default", request, job_id)
            task = tasks.claim_next(session, [TaskKind.COMPARE], 3600)
            assert task
            tasks.finish(session, task, result={**answer, **more})

    def counted(self, job_id: str, prompt: str, reference: str, trained: str) -> None:
        """A comparison over held-out prompts that was answered."""
        answer = {"row": 3, "prompt": prompt, "trained_model_response": trained, "reference_model_response": reference}
        answers = [
            {**answer, "margin": 2.5, "flags": [], "outcome": "better"},
            {**answer, "margin": 9.5, "flags": ["repetition"], "outcome": "broken"},
        ]
        counts = {"asked": 48, "prompts": 48, "better": 41, "ties": 4, "worse": 2, "broken": 1}
        result = {**counts, "share": 43 / 48, "low": 0.779, "high": 0.955, "answers": answers}
        with self.live.database.transaction() as session:
            tasks.insert(session, TaskKind.HELD_OUT, "default", {"prompts": 48, "max_length": 128}, job_id)
            task = tasks.claim_next(session, [TaskKind.HELD_OUT], 3600)
            assert task
            tasks.finish(session, task, result=result)

    def drop_dry_runs(self) -> None:
        """Answers every dry run that other tests have left waiting."""
        with self.live.database.transaction() as session:
            while task := tasks.claim_next(session, [TaskKind.VALIDATE], 3600):
                tasks.finish(session, task, {})

    def answer_dry_run(self, result: dict[str, Any]) -> None:
        """Answers the next dry run that is asked for, as its worker would."""

        def claim() -> bool:
            with self.live.database.transaction() as session:
                task = tasks.claim_next(session, [TaskKind.VALIDATE], 3600)
                if task:
                    tasks.finish(session, task, result={**result, **task.request})
                return task is not None

        until(claim)

    def long_run(self, steps: int, curves: int) -> str:
        """The first job of a service: it runs, and has so many points a curve."""
        job_id = self.submit("long run")
        self.claim(job_id)
        point = {"job_id": job_id, "attempt": 1, "created_at": 0.0}
        with self.live.database.transaction() as session:
            for name in ["loss", *(f"metric_{i}" for i in range(1, curves))]:
                rows = [{**point, "name": name, "step": step, "value": 1 / (step + 1)} for step in range(steps)]
                session.execute(insert(MetricRecord), rows)
        return job_id

    def copies(self, count: int) -> None:
        """So many jobs like the first and only one, queued after it."""
        with self.live.database.transaction() as session:
            old = session.scalars(select(JobRecord)).one()
            same = {column.key: getattr(old, column.key) for column in JobRecord.__mapper__.column_attrs}
            own = {"state": "queued", "attempt": 0, "lease_token": None, "lease_expires_at": None, "phase": None}
            rows = [
                {**same, **own, "number": old.number + i, "turn": old.turn + i, "id": f"{i:032x}", "name": f"job {i}"}
                for i in range(1, count + 1)
            ]
            for start in range(0, count, 1000):
                session.execute(insert(JobRecord), rows[start : start + 1000])


def seed(live: Live) -> Seeded:
    """Jobs by state: `succeeded`, `failed`, `running`, `paused`, `cancelled`, `queued`; and a dataset."""
    found = Seeded(live)
    with (DATA / "kto_train.jsonl").open("rb") as rows:
        reply = httpx.post(f"{live.url}/v1/datasets", params={"name": "بيانات التجربة"}, content=rows.read())
    found.dataset = reply.json()["id"]

    def running(name: str, **fields: Any) -> Fence:
        found.jobs[name] = found.submit(f"تجربة {name}", **fields)
        fence = found.claim(found.jobs[name])
        found.train(fence, 60 if name == "succeeded" else 40)
        return fence

    found.succeed(running("succeeded"))
    reference, trained = "عاصمة المغرب هي الرباط، لا تسألني.", "شكرًا لك، عاصمة المغرب هي الرباط."
    found.compared(found.jobs["succeeded"], "ما عاصمة المغرب؟", reference, trained, margin=3.89, flags=["length_ratio"])
    found.counted(found.jobs["succeeded"], "ما عاصمة المغرب؟", reference, trained)
    error = error_dict("data_overlong", "train: 3 of 640 rows are longer than max_length=64")
    found.finish(running("failed", method="cpo"), Cause.FAIL, error=error)
    found.finish(running("paused", method="kto"), Cause.PAUSE)
    found.finish(running("cancelled"), Cause.CANCEL, error=error_dict("cancelled", "cancelled while running"))
    fence = running("running")
    with live.database.transaction() as session:
        jobs.add_warning(session, fence, {"code": "learning_rate_clamped", "message": "training uses 5e-07"})
        jobs.request(session, fence.job_id, Request.PAUSE)
    found.jobs["queued"] = found.submit(None, "kto")
    return found
