"""No container engine runs the tests, so the compose file and the images are checked against the code by reading them."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.queue import (
    CHECK_QUEUE,
    CHECK_TASK,
    COMPARE_QUEUE,
    COMPARE_TASK,
    EXPORT_QUEUE,
    EXPORT_TASK,
    TRAIN_QUEUE,
    TRAIN_TASK,
)
from jobs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {"api", "dispatcher", "train-worker", "train-worker-cpu", "generation-worker", "checks-worker", "exports-worker"}
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_every_part_of_the_service_is_there() -> None:
    assert set(SERVICES) == OURS | {"redis", "postgres"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_variable_is_a_setting(name: str) -> None:
    environment = SERVICES[name]["environment"]
    known = {f"TAFDIL_{field.upper()}" for field in Settings.model_fields}
    # OpenTelemetry reads its own.
    assert {variable for variable in environment if not variable.startswith("OTEL_")} <= known
    assert {"TAFDIL_DATA_DIR", "TAFDIL_DATABASE_URL", "TAFDIL_REDIS_URL"} <= set(environment)


def test_traces_reach_every_process_that_makes_them() -> None:
    for name in OURS:
        assert {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"} <= set(SERVICES[name]["environment"])
    assert DOCKERFILE.count("tracing]") == 2, "both images can trace"


def test_other_settings_reach_our_services_and_no_other() -> None:
    for name, service in SERVICES.items():
        expected = [{"path": "settings.env", "required": False}] if name in OURS else None
        assert service.get("env_file") == expected, name
    for ignored in (".gitignore", ".dockerignore"):
        assert {".env", "settings.env"} <= set((ROOT / ignored).read_text().splitlines()), ignored


def test_the_urls_lead_to_the_services() -> None:
    environment = SERVICES["api"]["environment"]
    postgres = SERVICES["postgres"]["environment"]
    assert "@postgres:5432/" in environment["TAFDIL_DATABASE_URL"]
    assert environment["TAFDIL_DATABASE_URL"].startswith(f"postgresql://{postgres['POSTGRES_USER']}:")
    assert environment["TAFDIL_DATABASE_URL"].endswith(f"/{postgres['POSTGRES_DB']}")
    assert "@redis:6379/" in environment["TAFDIL_REDIS_URL"]


def test_every_substituted_variable_is_in_the_example() -> None:
    named = set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT))
    example = {line.split("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line}
    assert named == example


@pytest.mark.parametrize(
    ("name", "module", "task", "queue"),
    [
        ("train-worker", "worker.tasks", TRAIN_TASK, TRAIN_QUEUE),
        ("train-worker-cpu", "worker.tasks", TRAIN_TASK, TRAIN_QUEUE),
        ("generation-worker", "worker.generation_worker", COMPARE_TASK, COMPARE_QUEUE),
        ("checks-worker", "worker.check_worker", CHECK_TASK, CHECK_QUEUE),
        ("exports-worker", "worker.export_worker", EXPORT_TASK, EXPORT_QUEUE),
    ],
)
def test_the_workers_run_the_task_of_their_queue(name: str, module: str, task: str, queue: str) -> None:
    from celery.bin.worker import worker

    command = SERVICES[name]["command"]
    assert command[:2] == ["celery", "-A"]
    assert command[2] == module
    assert command[3] == "worker"
    assert task in importlib.import_module(module).app.tasks
    arguments = command[4:]
    options = worker.make_parser(_context(worker)).parse_args(list(arguments))[0]
    assert options["queues"] == queue
    assert int(options["concurrency"]) == 1
    assert options["pool"] == "prefork"
    assert options["without_gossip"]
    assert options["without_mingle"]


def _context(command: Any) -> Any:
    import click

    return click.Context(command)


def test_the_workers_run_as_the_local_stack_runs_them(tmp_path: Path) -> None:
    from tafdil.local_stack import LocalStack

    planned = {service.name: service.command for service in LocalStack(tmp_path, port=0)._plan()}
    for name in ("train-worker", "generation-worker", "checks-worker", "exports-worker"):
        assert SERVICES[name]["command"] == planned[name][2:]


def test_the_api_command_names_the_factory_and_the_published_port() -> None:
    command = SERVICES["api"]["command"]
    assert command[0] == "uvicorn"
    module, _, factory = command[1].partition(":")
    assert callable(getattr(importlib.import_module(module), factory))
    assert "--factory" in command
    port = command[command.index("--port") + 1]
    assert [published.rsplit(":", 1)[1] for published in SERVICES["api"]["ports"]] == [port]
    assert all(published.startswith("127.0.0.1:") for published in SERVICES["api"]["ports"])
    assert f":{port}/readyz" in " ".join(SERVICES["api"]["healthcheck"]["test"])


def test_modules_that_are_run_exist() -> None:
    for service in SERVICES.values():
        for command in (service.get("command", []), service["healthcheck"]["test"]):
            words = command if isinstance(command, list) else shlex.split(command)
            if "-m" in words:
                assert importlib.util.find_spec(words[words.index("-m") + 1])


def test_every_container_has_a_health_check_and_is_not_root() -> None:
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"], name
        user = str(service["user"])
        assert not user.startswith(("0", "root")), name


def test_only_the_api_is_published() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["api"]


def test_the_gpu_worker_reserves_a_gpu_and_the_cpu_worker_waits_for_its_profile() -> None:
    devices = SERVICES["train-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert SERVICES["train-worker-cpu"]["profiles"] == ["cpu"]
    assert "deploy" not in SERVICES["train-worker-cpu"]


def test_a_drain_fits_into_the_grace_period() -> None:
    grace = SERVICES["train-worker"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Settings().drain_grace_s + 10


def test_volumes_and_files_exist() -> None:
    for name, service in SERVICES.items():
        for volume in service["volumes"]:
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source.startswith("./docker/"):
                assert (ROOT / source).is_file(), name
            elif not source.startswith("."):
                assert source in COMPOSE["volumes"], name
    environment = SERVICES["api"]["environment"]
    targets = [re.sub(r"\$\{[^}]*\}", "x", volume).split(":")[1] for volume in SERVICES["api"]["volumes"]]
    assert environment["TAFDIL_DATA_DIR"] in targets
    assert environment["TAFDIL_MODELS_DIR"] in targets


def test_redis_never_drops_a_queue() -> None:
    lines = dict(
        line.split(maxsplit=1)
        for line in (ROOT / "docker" / "redis.conf").read_text().splitlines()
        if line and line[0] != "#"
    )
    assert lines["appendonly"] == "yes"
    assert lines["maxmemory-policy"] == "noeviction"
    assert any("/etc/redis/tafdil.conf" in volume for volume in SERVICES["redis"]["volumes"])
    assert "/etc/redis/tafdil.conf" in " ".join(SERVICES["redis"]["command"])


def test_the_images_copy_what_exists_and_install_known_extras() -> None:
    for source in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", DOCKERFILE, re.MULTILINE))
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= stages
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for group in re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE):
        assert set(group.split(",")) <= set(extras)
    service_stage = DOCKERFILE.split("AS service")[1].split("FROM")[0]
    assert ".[train" not in service_stage, "the API's image has no torch"
    assert DOCKERFILE.count("USER 10001:10001") == 2
