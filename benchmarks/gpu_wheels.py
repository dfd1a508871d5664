"""Gathers the wheels that a GPU machine without a package index lacks, to be carried to it.

    python benchmarks/gpu_wheels.py                          # into wheels/, at most 54 MiB
    python benchmarks/gpu_wheels.py --cuda 12.8              # for a machine whose torch was built for CUDA 12.8
    python benchmarks/gpu_wheels.py --limit-mib 20           # what does not fit is left out and named
    python benchmarks/gpu_wheels.py --has my_machine.txt     # one package a line, as `pip list --format=freeze` prints it

Run it on x86-64 Linux. Groups are taken in the order of need: training, then 4-bit weights, then the service. A group is
taken whole or not at all, since part of one does not run. What a package needs is read from its wheel. What the machine has
is neither fetched nor followed, so that torch is never downloaded.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import cache
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MACHINE_FILE = ROOT / "benchmarks" / "gpu_machine.txt"
MIB = 2**20
# pip takes a platform literally: every older glibc has to be named as well.
COMPILED = [*(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)), "manylinux2014_x86_64", "linux_x86_64"]


@dataclass(frozen=True)
class Wheel:
    """A fetched wheel, and what its metadata says it needs."""

    path: Path
    version: str
    needs: tuple[str, ...]


def wanted_groups(pyproject: Path = ROOT / "pyproject.toml") -> dict[str, list[str]]:
    """What each group needs directly, in the order of need."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return {
        "training": [*extras["train"], "pyarrow", "pydantic"],
        "4-bit": extras["quant"],
        "service": [*project["dependencies"], *extras["local"]],
    }


def read_packages(path: Path) -> dict[str, str]:
    """Names and versions (empty where none is given) from a list with one package a line."""
    lines = (line.partition("#")[0].partition("==") for line in path.read_text(encoding="utf-8").splitlines())
    return {canonicalize_name(name.strip()): version.strip() for name, _, version in lines if name.strip()}


def applies(need: Requirement, extras: Iterable[str], python: str) -> bool:
    """Whether a package that was asked for with these extras has this need under this Python."""
    machine = {"python_version": python, "python_full_version": f"{python}.0"}
    return need.marker is None or any(need.marker.evaluate(machine | {"extra": extra}) for extra in ("", *extras))


def closure(
    direct: list[str], has: dict[str, str], pins: dict[str, str], python: str, fetch: Callable[[str], Wheel]
) -> dict[str, Wheel]:
    """The wheels of these packages and of all that they need, except what the machine has.

    A package is fetched once: at its pin, or else at the newest version that the first one asking for it allows.
    Raises `ValueError` that names every need which these versions, or the machine's, do not meet.
    """
    found: dict[str, Wheel] = {}
    asked = [("tafdil", Requirement(one)) for one in direct]
    seen: set[str] = set()
    for _, need in asked:  # grows while it is read
        name = canonicalize_name(need.name)
        if name in has or str(need) in seen:
            continue
        seen.add(str(need))
        if name not in found:
            found[name] = fetch(f"{name}=={pins[name]}" if name in pins else f"{name}{need.specifier}")
        needs = map(Requirement, found[name].needs)
        asked += [(name, one) for one in needs if applies(one, need.extras, python)]
    versions = has | {name: wheel.version for name, wheel in found.items()}
    unmet = {
        f"{who} needs {need.name}{need.specifier}, not {version}": None
        for who, need in asked
        if (version := versions[canonicalize_name(need.name)]) and not need.specifier.contains(version, prereleases=True)
    }
    if unmet:
        raise ValueError("; ".join(unmet))
    return found


def select(groups: dict[str, dict[str, int]], limit_bytes: int) -> dict[str, int]:
    """The bytes that each group adds, of the groups that fit. A wheel that a taken group has already costs nothing.

    Args:
        groups: the size in bytes of each wheel of each group, in the order of need.
    """
    taken: dict[str, int] = {}
    wheels: set[str] = set()
    for group, sizes in groups.items():
        added = sum(size for wheel, size in sizes.items() if wheel not in wheels)
        if sum(taken.values()) + added <= limit_bytes:
            taken[group] = added
            wheels |= sizes.keys()
    return taken


def download(need: str, folder: Path, python: str, platforms: list[str]) -> Wheel:
    """One wheel, moved into the folder. Raises `ValueError` with pip's complaint when these platforms have none."""
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    options += [option for platform in platforms for option in ("--platform", platform)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", place, need]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            raise ValueError(f"{result.stdout}pip found no wheel of {need}")
        (path,) = (one.rename(folder / one.name) for one in Path(place).iterdir())
    with ZipFile(path) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA") and one.count("/") == 1)
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    return Wheel(path, metadata["Version"], tuple(metadata.get_all("Requires-Dist", [])))


def smallest(need: str, folder: Path, python: str) -> Wheel:
    """The wheel without compiled parts where this version has one (SQLAlchemy: 2 MiB, not 4.5), or else the compiled one."""
    wheel = download(need, folder, python, COMPILED)
    if not wheel.path.name.endswith("-any.whl"):
        with suppress(ValueError):
            return download(f"{Requirement(need).name}=={wheel.version}", folder, python, ["any"])
    return wheel


def keep_cuda(path: Path, cuda: str) -> None:
    """Leaves out of a wheel the libraries for other GPUs: bitsandbytes brings one for each version of CUDA, ROCm and XPU.

    Raises `ValueError` when the wheel has libraries for other versions of CUDA but none for this one.
    """
    library = re.compile(r"_(cuda|rocm|xpu)(\d+)\.so\b")
    wanted = "cuda", cuda.replace(".", "")
    slim = path.with_suffix(".slim")
    with ZipFile(path) as archive:
        names = archive.namelist()
        found = {name: one.groups() for name in names if (one := library.search(name))}
        if not found:
            return
        if wanted not in found.values():
            raise ValueError(f"{path.name} has no library for CUDA {cuda}, only {sorted(map(''.join, found.values()))}")
        with ZipFile(slim, "w", ZIP_DEFLATED, compresslevel=9) as kept:
            for name in names:
                lines = archive.read(name).splitlines(keepends=True) if name.endswith("/RECORD") else None
                if found.get(name, wanted) == wanted:
                    listed = lines and b"".join(line for line in lines if found.get(_listed(line), wanted) == wanted)
                    kept.writestr(name, archive.read(name) if listed is None else listed)
    slim.replace(path)


def _listed(line: bytes) -> str:
    """The file that a line of a wheel's list of files names."""
    return line.decode().partition(",")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="the GPU machine's Python")
    parser.add_argument("--cuda", default="13.0", help="the CUDA that the GPU machine's torch was built for")
    parser.add_argument("--folder", type=Path, default=Path("wheels"), help="where the wheels go; it holds none yet")
    parser.add_argument("--limit-mib", type=float, default=54.0, help="the most that all wheels may take together")
    parser.add_argument("--has", type=Path, default=MACHINE_FILE, help="what the machine has")
    options = parser.parse_args()
    if any(options.folder.glob("*.whl")):
        sys.exit(f"{options.folder} holds wheels already: remove them, or name another folder")
    options.folder.mkdir(parents=True, exist_ok=True)
    has, pins = read_packages(options.has), read_packages(ROOT / "constraints.txt")
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        fetch = cache(lambda need: smallest(need, Path(place), options.python))
        needed: dict[str, dict[str, Wheel]] = {}
        try:
            for name, direct in wanted_groups().items():
                needed[name] = closure(direct, has, pins, options.python, fetch)
                # Two versions of a package cannot be installed together.
                pins |= {package: wheel.version for package, wheel in needed[name].items()}
            for wheel in needed["4-bit"].values():
                keep_cuda(wheel.path, options.cuda)
        except ValueError as error:
            sys.exit(str(error))
        paths = {wheel.path.name: wheel.path for wheels in needed.values() for wheel in wheels.values()}
        groups = {name: {one.path.name: one.path.stat().st_size for one in found.values()} for name, found in needed.items()}
        taken = select(groups, int(options.limit_mib * MIB))
        named: set[str] = set()
        for name, sizes in groups.items():
            print(f"{name}: {f'{taken[name] / MIB:.1f} MiB' if name in taken else 'LEFT OUT, it does not fit'}")
            for wheel in sorted(sizes.keys() - named, key=sizes.__getitem__, reverse=True):
                print(f"  {sizes[wheel] / MIB:6.2f}  {wheel}")
            named |= sizes.keys()
        for wheel in {wheel for name in taken for wheel in groups[name]}:
            paths[wheel].rename(options.folder / wheel)
    print(f"{sum(taken.values()) / MIB:.1f} of {options.limit_mib:g} MiB in {options.folder}")


if __name__ == "__main__":
    main()
