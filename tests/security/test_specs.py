"""What a client may say of a training is a list: any other key is refused, and nothing else reaches the trainer."""

import dataclasses
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, seed
from hypothesis import settings as runs
from hypothesis import strategies as some

from api.app import create_app
from jobs.settings import Settings
from jobs.spec import library_config, read_spec
from tests.api import BASE_URL, error_of
from tests.fakes import FakeQueue, RecordingObserver
from tests.live import settings
from tests.training import METHODS, config, train_file
from trainer_core import PreferenceTrainer
from trainer_core.config import LibraryPaths
from trainer_core.errors import SpecInvalid

__all__ = ["settings"]

# Arguments of the libraries below that read files, run code, or send something away.
DANGEROUS: dict[str, Any] = {
    "trust_remote_code": True,
    "deepspeed": "/etc/passwd",
    "fsdp": "full_shard",
    "fsdp_config": "/etc/passwd",
    "accelerator_config": "/etc/passwd",
    "hub_token": "hf_x",
    "hub_model_id": "someone/model",
    "push_to_hub": True,
    "logging_dir": "/tmp/elsewhere",
    "output_dir": "/tmp/elsewhere",
    "cache_dir": "/tmp/elsewhere",
    "resume_from_checkpoint": "/tmp/elsewhere/checkpoint-1",
    "model_init_kwargs": {"trust_remote_code": True},
    "ref_model_init_kwargs": '{"trust_remote_code": true}',
    "torch_compile_backend": "x",
    "optim_args": "x",
    "run_name": "x",
    "attn_implementation": "someone/kernel",
    "config_overrides": "x",
    "start_from": "0" * 32,
    "tenant": "other",
    "id": "0" * 32,
    "state": "succeeded",
    "artifact_path": "../x",
    "__class__": "x",
    "__proto__": {"x": 1},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Generator[TestClient]:
    found = Settings(data_dir=tmp_path_factory.mktemp("specs"))
    with TestClient(create_app(found, FakeQueue()), BASE_URL, raise_server_exceptions=False) as client:
        yield client


def bodies(client: TestClient) -> dict[str, dict[str, Any]]:
    """A good body for every route that takes an object, but for the changes of a clone, which are tested beside."""
    named = {"model_name": "tafdil/tiny-arabic-qwen-2"}
    specs = {
        f"/v1/jobs{route}#{method}": {
            **named,
            "method": method,
            "dataset_path": f"samples/{train_file(method)}",
        }
        for method in METHODS
        for route in ("", "/validate")
    }
    job, dataset = f"/v1/jobs/{'0' * 32}", f"/v1/datasets/{'0' * 32}"
    others = {
        f"{job}/cancel": {"save_checkpoint": True},
        f"{job}/resume": {"max_hours": 2.0},
        f"{job}/rerun": {"from_checkpoint": True},
        f"{job}/compare": {"prompt": "س"},
        f"{job}/compare/held_out": {"prompts": 3},
        f"{job}/push": {"name": "model"},
        f"{dataset}/preview": named,
        "/v1/keys": {"tenant": "a"},
        "/v1/session": {"key": "x"},
    }
    described = {
        path
        for path, methods in client.app.openapi()["paths"].items()  # type: ignore[attr-defined]
        if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {})
    }
    walked = {path.partition("#")[0].replace("0" * 32, "{}") for path in [*specs, *others]}
    assert {part.replace("{job_id}", "{}").replace("{dataset_id}", "{}") for part in described} - {
        "/v1/jobs/{}/clone",
        "/v1/datasets",
        "/v1/datasets/check",
    } == walked, "say in this test what a new route takes"
    return specs | others


def fields_of(client: TestClient) -> set[str]:
    schemas = client.app.openapi()["components"]["schemas"]  # type: ignore[attr-defined]
    return {name for schema in schemas.values() for name in schema.get("properties", {})}


@seed(20)
@runs(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    key=some.text(max_size=40),
    value=some.recursive(
        some.none() | some.booleans() | some.integers() | some.text(max_size=20),
        lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)
@example(key="", value=None)
@example(key="beta ", value=0.1)
@example(key="Beta", value=0.1)
@example(key="model-name", value="x")
@example(key="spec.beta", value=0.1)
def test_any_unknown_key_is_refused(client: TestClient, key: str, value: Any) -> None:
    if key in fields_of(client):
        return
    for path, body in bodies(client).items():
        sent = json.dumps({**body, key: value})
        reply = client.post(path.partition("#")[0], content=sent, headers={"Content-Type": "application/json"})
        error_of(reply, 422, "spec_invalid")
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_arguments_of_the_libraries_are_no_fields(client: TestClient) -> None:
    for path, body in bodies(client).items():
        for name, value in DANGEROUS.items():
            if name in body:
                continue
            error = error_of(client.post(path.partition("#")[0], json={**body, name: value}), 422, "spec_invalid")
            assert name in {detail["field"] for detail in error["details"]}, (path, name)
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_a_clone_takes_no_unknown_key_either(settings: Settings, spec: dict[str, Any]) -> None:
    with TestClient(create_app(settings, FakeQueue()), BASE_URL, raise_server_exceptions=False) as client:
        job = client.post("/v1/jobs", json=spec).json()
        for name, value in DANGEROUS.items():
            error_of(client.post(f"/v1/jobs/{job['id']}/clone", json={name: value}), 422, "spec_invalid")
        assert len(client.get("/v1/jobs").json()["jobs"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"report_to": ["/tmp/x"]},
        {"report_to": ["all"]},
        {"report_to": "all"},
        {"report_to": [{"wandb": 1}]},
        {"lora_target_modules": ".*"},
        {"lora_target_modules": {"a": 1}},
        {"lr_scheduler_type": "someone.module"},
        {"optim": "someone.module"},
        {"optim": "galore_adamw"},
        {"eval_steps": "../x"},
        {"save_steps": {"epoch": 1}},
        {"precision": "torch.float8"},
        {"apply_chat_template": "{{ evil }}"},
        {"early_stopping_metric": "__class__"},
        {"gpu_class": "../x"},
        {"gpu_class": "train,other"},
        {"method": "__init__"},
        {"method": ["ipo"]},
        {"model_name": ["tafdil/tiny-arabic-qwen-2"]},
        {"learning_rate": "1e-3; x"},
    ],
)
def test_a_known_key_takes_no_place_or_program(client: TestClient, spec: dict[str, Any], change: dict[str, Any]) -> None:
    error_of(client.post("/v1/jobs", json={**spec, **change}), 422, "spec_invalid")


@pytest.mark.parametrize("method", METHODS)
def test_the_library_gets_the_fields_of_the_spec_and_the_services_places_alone(method: str, spec: dict[str, Any]) -> None:
    """Also from a stored spec that has more than it may."""
    stored = read_spec({**spec, "method": method}).model_dump(mode="json")
    places = {"dataset_path": "rows", "output_dir": "out", "cache_dir": "cache", "cache_gib": 1.0}
    made = library_config({**stored, **{k: v for k, v in DANGEROUS.items() if k not in places}}, places)
    assert set(type(made).model_fields) == set(stored) - {
        *("method", "name", "recipe", "priority", "gpu_class", "max_hours", "dataset_id", "eval_dataset_id"),
    } | set(LibraryPaths.model_fields)
    assert {name: getattr(made, name) for name in places} == places
    with pytest.raises(SpecInvalid):
        read_spec({**spec, "method": method, "output_dir": "elsewhere"})


# What the product sets of the arguments of transformers and TRL; the others keep their defaults.
SET = {
    *("output_dir", "run_name", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("per_device_eval_batch_size", "gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "weight_decay"),
    *("max_grad_norm", "seed", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "eval_strategy"),
    *("eval_steps", "eval_on_start", "save_strategy", "save_steps", "save_total_limit", "bf16", "fp16", "use_cpu"),
    *("gradient_checkpointing", "dataloader_num_workers", "dataloader_pin_memory", "remove_unused_columns"),
    *("prediction_loss_only", "report_to", "disable_tqdm", "label_names"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs"),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_arguments_of_the_trainer_are_the_products(method: str, tmp_path: Path) -> None:
    trainer = PreferenceTrainer(config(method, tmp_path / "out"), observer=RecordingObserver())
    arguments = trainer.get_training_arguments()
    plain = type(arguments)(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    own = set(trainer._method.trl_arguments())
    # An old name of gradient_checkpointing, and what transformers finds out by itself.
    computed = {"activation_checkpointing", "_n_gpu", "distributed_state", "deepspeed_plugin", "accelerator_config"}
    changed = {
        field.name
        for field in dataclasses.fields(arguments)
        if field.name not in computed and getattr(arguments, field.name) != getattr(plain, field.name)
    }
    assert changed <= SET | own
    assert not own & set(DANGEROUS)
    assert (arguments.push_to_hub, arguments.hub_token, arguments.deepspeed, arguments.resume_from_checkpoint) == (
        False,
        None,
        None,
        None,
    )
