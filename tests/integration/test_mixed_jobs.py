"""Jobs on several datasets: whose they may be, what is checked when they come, and what keeps a dataset from deletion."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.schemas import DryRunResult
from jobs.places import data_places
from jobs.settings import Settings
from jobs.spec import dataset_ids, library_config, read_spec
from tests.api import client, database, error_of, queue
from tests.conftest import DATA, TINY_MODEL
from tests.fakes import FakeQueue
from tests.integration.test_access import admin, app, client_of
from trainer_core import mixing
from trainer_core.config import SETTINGS
from trainer_core.dry_run import dry_run

__all__ = ["admin", "app", "client", "database", "queue"]


def upload(client: TestClient, name: str | None, rows: str = "pairs_held_out.jsonl", count: int = 12) -> str:
    lines = (DATA / rows).read_text(encoding="utf-8").splitlines()[:count]
    reply = client.post("/v1/datasets", params={"name": name} if name else {}, content="\n".join(lines).encode())
    assert reply.status_code == 201, reply.text
    return reply.json()["id"]


def mixed(spec: dict[str, Any], *datasets: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**{k: v for k, v in spec.items() if k != "dataset_path"}, "datasets": list(datasets), **fields}


def test_a_mix_is_stored_with_the_names_of_its_datasets(
    client: TestClient, spec: dict[str, Any], settings: Settings
) -> None:
    named, unnamed = upload(client, "formal"), upload(client, None)
    sent = mixed(
        spec,
        {"dataset_id": named, "weight": 3},
        {"dataset_id": unnamed, "weight": 1},
        {"dataset_path": "samples/pairs_train.jsonl", "weight": 1.0, "name": "sample"},
    )
    job = client.post("/v1/jobs", json=sent)
    assert job.status_code == 202, job.text
    stored = job.json()["spec"]
    assert [each["name"] for each in stored["datasets"]] == ["formal", unnamed[:8], "sample"]
    assert (job.json()["dataset_id"], stored["dataset_id"], stored["dataset_path"]) == (None, None, None)
    assert client.get(f"/v1/jobs/{job.json()['id']}/metadata").json()["sent_spec"] == sent
    assert dataset_ids(stored) == {named, unnamed}

    config = library_config(stored, data_places(settings, stored))
    assert config.dataset_path is None
    assert [taken.rows_taken for taken in mixing.read(config).taken] == [12, 4, 4]
    said = dry_run(config, locate=lambda _: str(TINY_MODEL))
    assert [(each["name"], each["rows_in_file"], each["rows_taken"]) for each in said["data"]["datasets"]] == [
        ("formal", 12, 12),
        (unnamed[:8], 12, 4),
        ("sample", 640, 4),
    ]
    shown = DryRunResult.model_validate({**said, "spec": stored})
    assert all(str(sample.row).partition(":")[0] in ("formal", unnamed[:8], "sample") for sample in shown.samples)
    assert client.post("/v1/jobs/validate", params={"wait_s": 0}, json=sent).status_code == 202
    # A source among the overrides takes the place of the list, and the other way round.
    alone = client.post(f"/v1/jobs/{job.json()['id']}/clone", json={"dataset_id": named}).json()
    assert (alone["dataset_id"], alone["spec"]["datasets"]) == (named, None)
    again = client.post(f"/v1/jobs/{alone['id']}/clone", json={"datasets": sent["datasets"]}).json()
    assert again["spec"]["datasets"] == stored["datasets"]
    assert client.post(f"/v1/jobs/{again['id']}/cancel").is_success
    assert client.post(f"/v1/jobs/{again['id']}/rerun").json()["spec"]["datasets"] == stored["datasets"]


def test_a_dataset_in_a_list_stays_while_its_job_is_not_over(client: TestClient, spec: dict[str, Any]) -> None:
    first, second, other = (upload(client, name) for name in ("first", "second", "other"))
    job = client.post("/v1/jobs", json=mixed(spec, {"dataset_id": first}, {"dataset_id": second, "rows": 3})).json()["id"]
    for dataset in (first, second):
        message = error_of(client.delete(f"/v1/datasets/{dataset}"), 409, "state_conflict")["message"]
        assert f"is used by job {job}" in message
    assert client.delete(f"/v1/datasets/{other}").status_code == 200
    client.post(f"/v1/jobs/{job}/cancel")
    assert client.delete(f"/v1/datasets/{second}").status_code == 200
    # A job of an earlier version has no list.
    assert dataset_ids({"dataset_id": None, "eval_dataset_id": first}) == {first}


def test_what_cannot_be_mixed_is_refused_when_it_comes(
    client: TestClient, spec: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    of_pairs, ratings = upload(client, "pairs"), upload(client, "ratings", "kto_train.jsonl")

    def refused(status: int, code: str, *datasets: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return error_of(client.post("/v1/jobs", json=mixed(spec, *datasets, **fields)), status, code)

    error = refused(422, "data_invalid", {"dataset_id": of_pairs}, {"dataset_id": ratings, "name": "stars"})
    assert error["message"].startswith("stars: IPO needs preference pairs")
    error = refused(422, "data_invalid", {"dataset_id": of_pairs}, {"dataset_id": ratings})
    assert error["message"].startswith("ratings: "), "an upload is called by its own name"
    assert error["details"][0]["field"] == "datasets.1.dataset_id"
    assert client.post(
        "/v1/jobs", json=mixed(spec, {"dataset_id": of_pairs}, {"dataset_id": ratings}, method="kto")
    ).is_success
    error = refused(422, "data_invalid", {"dataset_id": of_pairs}, {"dataset_path": "../x"})
    assert error["details"][0]["field"] == "datasets.1.dataset_path"
    refused(404, "not_found", {"dataset_id": of_pairs}, {"dataset_id": "0" * 32})
    (settings.data_dir / "broken.jsonl").write_text(json.dumps({"prompt": "س", "chosen": "ج"}) + "\n", encoding="utf-8")
    error = refused(422, "data_invalid", {"dataset_id": of_pairs}, {"dataset_path": "broken.jsonl"})
    assert error["message"] == "broken.jsonl: line 1: rejected: is missing"
    assert error["details"][0]["reason"] == "is missing (in broken.jsonl)"
    twice = ({"dataset_path": "samples/pairs_train.jsonl"}, {"dataset_path": "samples/../samples/pairs_train.jsonl"})
    assert "lists the file of samples/../samples/pairs_train.jsonl twice" in refused(422, "data_invalid", *twice)["message"]
    error = refused(422, "spec_invalid", {"dataset_id": of_pairs, "rows": 1, "weight": 1})
    assert [detail["field"] for detail in error["details"]] == ["datasets.0"]
    assert "set rows or weight, not both" in error["message"]
    assert "exactly one of" in refused(422, "spec_invalid", {"dataset_id": of_pairs}, dataset_id=of_pairs)["message"]


@pytest.mark.usefixtures("app")
def test_a_tenant_mixes_its_own_datasets_alone(admin: TestClient, spec: dict[str, Any]) -> None:
    ours, theirs = client_of(admin, tenant="a", scopes=["write"]), client_of(admin, tenant="b", scopes=["write"])
    own, foreign = upload(ours, "own"), upload(theirs, "foreign")
    sent = mixed(spec, {"dataset_id": own}, {"dataset_id": foreign})
    for path in ("/v1/jobs", "/v1/jobs/validate"):
        assert foreign in error_of(ours.post(path, json=sent), 404, "not_found")["message"]
    assert ours.post("/v1/jobs", json=mixed(spec, {"dataset_id": own})).status_code == 202


def test_the_schema_has_the_list(app: FastAPI, queue: FakeQueue) -> None:
    schemas = app.openapi()["components"]["schemas"]
    assert set(schemas["MixedDataset"]["properties"]) == {"dataset_id", "dataset_path", "name", "rows", "weight"}
    for method in (each.title for each in SETTINGS):
        (items,) = [each for each in schemas[f"{method}JobSpec"]["properties"]["datasets"]["anyOf"] if "items" in each]
        assert items["items"] == {"$ref": "#/components/schemas/MixedDataset"}


def test_a_job_that_was_stored_before_lists_still_has_its_data(settings: Settings, spec: dict[str, Any]) -> None:
    stored = read_spec({**spec, "dataset_path": "rows.jsonl"}).model_dump(mode="json")
    del stored["datasets"]
    (settings.data_dir / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    places = data_places(settings, stored)
    assert (places["datasets"], library_config(stored, places).dataset_path) == (None, str(settings.data_dir / "rows.jsonl"))
