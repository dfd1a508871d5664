"""Prometheus' and Grafana's files against the metrics that the service has."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from tests.api import BASE_URL
from tests.fakes import FakeQueue

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.watch.yml").read_text(encoding="utf-8"))
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "alerts.yml").read_text(encoding="utf-8"))
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docker/grafana/dashboards/tafdil.json").read_text(encoding="utf-8"))


def known_metrics(tmp_path: Path) -> set[str]:
    with TestClient(create_app(Settings(data_dir=tmp_path), FakeQueue()), BASE_URL) as client:
        client.get("/healthz")
        text = client.get("/metrics").text
    names = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    return names | {f"{name}_bucket" for name in names}


def test_every_expression_names_metrics_that_exist(tmp_path: Path) -> None:
    rules = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    used = {name for expression in rules + panels for name in re.findall(r"\btafdil_\w+", expression)}
    assert len(used) > 10
    assert used <= known_metrics(tmp_path)


def test_every_alert_says_what_to_do() -> None:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
            assert rule["labels"]["severity"] in ("warning", "critical")


def test_panels_do_not_overlap_and_have_a_source_that_is_provisioned() -> None:
    source = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    uid = source["datasources"][0]["uid"]
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not own & cells, panel["title"]
        cells |= own
        assert panel["datasource"]["uid"] == uid


def test_the_files_are_mounted_where_they_are_looked_for() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], name
        assert service["healthcheck"]["test"]
        assert not str(service["user"]).startswith(("0", "root"))
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    prometheus = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text(encoding="utf-8"))
    mounted = {volume.split(":")[1] for volume in services["prometheus"]["volumes"]}
    assert set(prometheus["rule_files"]) <= mounted
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    main = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    name, port = target.split(":")
    assert port in main[name]["command"]
    assert name in main[name]["environment"]["TAFDIL_ALLOWED_HOSTS"]
