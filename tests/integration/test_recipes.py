"""Recipes in jobs: expanded at submit, on record, and kept by reruns and clones."""

import json
from itertools import product
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.recipes import _WORKED_OUT_FROM
from tests.api import client, database, error_of, queue
from tests.conftest import DATA
from tests.training import PAIR_METHODS
from trainer_core.config import METHODS, SETTINGS_OF
from trainer_core.recipes import RECIPES, VERSION, Facts, expand
from trainer_core.wording import worded

__all__ = ["client", "database", "queue"]
MODEL = "tafdil/tiny-arabic-qwen-2"


@pytest.fixture
def database_url(tmp_path: Any) -> str:
    return f"sqlite:///{tmp_path / 'test.sqlite3'}"


def spec(method: str = "ipo", name: str = "try", **fields: Any) -> dict[str, Any]:
    return {
        "method": method,
        "model_name": MODEL,
        "dataset_path": "samples/pairs_train.jsonl",
        "recipe": name,
        **fields,
    }


def submitted(client: TestClient, path: str = "/v1/jobs", **fields: Any) -> dict[str, Any]:
    reply = client.post(path, json=fields)
    assert reply.status_code == 202, reply.text
    return reply.json()


def test_every_recipe_expands_into_the_stored_spec(client: TestClient) -> None:
    for method in METHODS:
        for name in RECIPES:
            job = submitted(client, **spec(method, name))
            recipe = job["recipe"]
            assert (recipe["name"], recipe["version"], job["spec"]["recipe"]) == (name, VERSION, name)
            assert (recipe["weights"], recipe["size"], recipe["is_measured"]) == (948_864, "tiny", True)
            assert recipe["rows"] == (640 if method in PAIR_METHODS else 1280)
            fields = {each["name"]: each["value"] for each in recipe["fields"]}
            assert {field: job["spec"][field] for field in fields} == fields
            assert {"learning_rate", "learning_rate_cap", "validation_split"} <= fields.keys()
            metadata = client.get(f"/v1/jobs/{job['id']}/metadata").json()
            assert metadata["recipe"]["fields"] == [{**each} for each in recipe["fields"]]
            assert metadata["sent_spec"] == spec(method, name)


def test_named_fields_win_and_no_recipe_leaves_the_defaults(client: TestClient) -> None:
    job = submitted(client, **spec(max_steps=7, beta=0.1, gradient_checkpointing=True))
    assert (job["spec"]["max_steps"], job["spec"]["beta"], job["spec"]["gradient_checkpointing"]) == (7, 0.1, True)
    assert not {"max_steps", "beta", "gradient_checkpointing"} & {each["name"] for each in job["recipe"]["fields"]}
    plain = submitted(client, **spec(recipe=None))
    assert (plain["recipe"], plain["spec"]["recipe"]) == (None, None)
    assert (plain["spec"]["learning_rate"], plain["spec"]["learning_rate_cap"]) == (5e-7, 5e-7)
    # A spec that names every field, as a job's own `spec` does, is the same job again.
    again = submitted(client, **{name: value for name, value in job["spec"].items() if name != "datasets"})
    assert {**again["spec"], "datasets": None} == {**job["spec"], "datasets": None}


def test_uploaded_rows_are_counted(client: TestClient) -> None:
    rows = (DATA / "kto_split.json").read_bytes()
    dataset = client.post("/v1/datasets", content=rows).json()
    job = submitted(client, **spec("kto", "thorough", dataset_path=None, dataset_id=dataset["id"]))
    assert job["recipe"]["rows"] == dataset["train_rows"] == 400
    assert job["spec"]["validation_split"] is None, "the file has a validation part"
    pairs = {"dataset_path": "samples/pairs_train.jsonl", "rows": 50}
    mixed = [pairs, {"dataset_path": "samples/pairs_held_out.jsonl", "rows": 30}]
    mix = submitted(client, **spec("ipo", "careful", dataset_path=None, datasets=mixed))
    assert mix["recipe"]["rows"] == 80


def test_what_does_not_go_together_is_refused_by_field(client: TestClient) -> None:
    for fields, wrong in (
        ({"learning_rate_cap": 1e-6}, "learning_rate_cap"),
        ({"optim": "adafactor"}, "optim"),
        ({"recipe": "bold"}, "recipe"),
    ):
        for path in ("/v1/jobs", "/v1/jobs/validate"):
            error = error_of(client.post(path, json={**spec(), **fields}), 422, "spec_invalid")
            assert [detail["field"] for detail in error["details"]] == [wrong]
    arabic = client.post("/v1/jobs", json=spec(learning_rate_cap=1e-6), headers={"Accept-Language": "ar"}).json()["error"]
    detail = arabic["details"][0]
    assert detail["reason"] == worded("recipe_capped", detail["params"], "ar")


def test_the_record_is_worded_in_the_language_of_the_request(client: TestClient) -> None:
    job = submitted(client, **spec())
    for language in ("en", "ar"):
        found = client.get(f"/v1/jobs/{job['id']}", headers={"Accept-Language": language}).json()["recipe"]
        for each in (found, *found["fields"]):
            assert each["message"] == worded(each["message_code"], each["params"], language)  # type: ignore[arg-type]


def test_reruns_and_clones_keep_what_the_recipe_set(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submitted(client, **spec(beta=0.3))
    client.post(f"/v1/jobs/{job['id']}/cancel")
    # As if the tables had changed since.
    monkeypatch.setattr("trainer_core.recipes._SPLIT", 0.2)
    monkeypatch.setattr("trainer_core.recipes.VERSION", VERSION + 1)
    path = f"/v1/jobs/{job['id']}"
    rerun = submitted(client, f"{path}/rerun")
    assert (rerun["spec"], rerun["recipe"]) == (job["spec"], job["recipe"])
    clone = submitted(client, f"{path}/clone", name="نسخة", eval_steps=0.25)
    changed = {"name": "نسخة", "eval_steps": 0.25}
    assert clone["spec"] == {**job["spec"], **changed}
    assert clone["recipe"]["version"] == VERSION
    assert "eval_steps" not in {each["name"] for each in clone["recipe"]["fields"]}
    # What the values were worked out from has changed, so they are worked out anew; what the user set stays.
    anew = submitted(client, f"{path}/clone", dataset_path="samples/pairs_held_out.jsonl")
    assert (anew["recipe"]["version"], anew["recipe"]["rows"], anew["spec"]["beta"]) == (VERSION + 1, 414, 0.3)
    assert anew["spec"]["validation_split"] == 0.2
    without = submitted(client, f"{path}/clone", recipe=None)
    assert (without["recipe"], without["spec"]["learning_rate"], without["spec"]["beta"]) == (None, 5e-7, 0.3)
    twice = submitted(client, f"/v1/jobs/{clone['id']}/clone")
    assert {**twice["spec"], "name": None} == {**clone["spec"], "name": None}, "a clone of a clone"


def test_a_hub_model_is_treated_as_large(settings: Any, client: TestClient) -> None:
    settings.allow_hub = True
    job = submitted(client, **spec(model_name="Qwen/Qwen2.5-7B-Instruct"))
    assert (job["recipe"]["weights"], job["recipe"]["size"], job["recipe"]["is_measured"]) == (None, "large", False)
    assert job["spec"]["learning_rate"] <= 1e-4
    assert json.dumps(job["recipe"])


def test_a_clone_with_other_steps_has_another_learning_rate(client: TestClient) -> None:
    job = submitted(client, **spec())
    path = f"/v1/jobs/{job['id']}/clone"
    assert job["spec"]["max_steps"] == 60
    longer = submitted(client, path, max_steps=600)["spec"]
    assert longer["learning_rate"] == pytest.approx(job["spec"]["learning_rate"] / 10, rel=0.1)
    epochs = submitted(client, path, num_train_epochs=2)["spec"]
    assert (epochs["num_train_epochs"], epochs["max_steps"]) == (2, None)
    rate = submitted(client, path, learning_rate=0.002)
    assert (rate["spec"]["learning_rate"], rate["spec"]["learning_rate_cap"]) == (0.002, None)
    assert "learning_rate" not in {each["name"] for each in rate["recipe"]["fields"]}
    for fields in ({"learning_rate_cap": 1e-6}, {"optim": "adafactor"}):
        error = error_of(client.post(path, json=fields), 422, "spec_invalid")
        assert [detail["field"] for detail in error["details"]] == [*fields]


def test_every_field_that_a_recipe_goes_by_expands_a_clone_anew() -> None:
    values = (None, True, False, 0.5, 3, 7.0, 1e-9, 1000, "x", "adafactor", "constant")
    for method, settings in SETTINGS_OF.items():
        for base in ({}, {"lr_scheduler_type": "cosine_with_min_lr"}):
            usual = expand("thorough", method, Facts(948_864, 200, 150), base).values()
            for name, value in product(settings.model_fields.keys() - _WORKED_OUT_FROM, values):
                found = expand("thorough", method, Facts(948_864, 200, 150), {**base, name: value}).values()
                assert {**found, name: None} == {**usual, name: None}, name


def test_a_file_too_large_to_count_is_trained_on_in_steps(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.service._CHECKED_AT_SUBMIT_BYTES", 0)
    for name in ("careful", "thorough"):
        job = submitted(client, **spec("ipo", name))
        fields = {each["name"] for each in job["recipe"]["fields"]}
        assert (job["recipe"]["rows"], "max_steps" in fields, "num_train_epochs" in fields) == (None, True, False)
    error = error_of(client.post("/v1/jobs", json=spec("ipo", "careful", num_train_epochs=2)), 422, "spec_invalid")
    assert [detail["field"] for detail in error["details"]] == ["num_train_epochs"]


def test_a_job_that_continues_an_adapter_goes_by_its_scaling(settings: Any, client: TestClient) -> None:
    settings.models_dir = settings.data_dir / "models"
    folder = settings.models_dir / "adapters" / "loud"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 64}), encoding="utf-8")
    plain, continued = (submitted(client, **spec(**more)) for more in ({}, {"adapter_name": "adapters/loud"}))
    assert continued["spec"]["learning_rate"] == pytest.approx(plain["spec"]["learning_rate"] / 4, rel=0.05)
