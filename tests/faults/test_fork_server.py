"""Runs that a server forks, next to the same runs started by themselves. Real processes, tiny programs."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import forking
from tests.stack import alive, until
from worker import warm_start
from worker.training_process import TrainingProcess, session_processes, whole_environment
from worker.warm_start import ColdReason, ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork servers need Linux")
COMMAND = (sys.executable, "-m", "tests.rig.self_report")
ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., TrainingProcess]


@pytest.fixture(autouse=True, scope="module")
def _no_other_children() -> None:
    """This process's children are counted here. One may be left of an earlier file's stacks, and dead ones of its kills."""
    forking.close()
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.fixture(autouse=True)
def _modules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # pytest changes it between the setup and the test.
    monkeypatch.setattr(warm_start, "_PER_RUN", warm_start._PER_RUN | {"PYTEST_CURRENT_TEST"})


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Generator[ForkServer]:
    """A server in an environment with the variables that a test's parameter names."""
    found = ForkServer(COMMAND, whole_environment({"OWN": "1", **getattr(request, "param", {})}))
    found.start()
    yield found
    found.close()


@pytest.fixture
def start(tmp_path: Path) -> Generator[Start]:
    """Starts a run that does something, and ends it with the test."""
    started: list[TrainingProcess] = []

    def begin(
        server: ForkServer | ColdReason, do: str = "leave", lock: int | None = None, **variables: str
    ) -> TrainingProcess:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        (folder / "do").write_text(do)
        started.append(TrainingProcess(COMMAND, folder, {"OWN": "1", **variables}, lock, server=server))
        return started[-1]

    yield begin
    for process in started:
        if process.killed_at is None:
            process.end()


def heard(process: TrainingProcess) -> dict[str, Any]:
    """What a run reports of itself."""
    return until(lambda: next(iter(process.hear(0.1) or []), None))


def ended(process: TrainingProcess) -> tuple[int | None, list[int]]:
    """The end of a run that ends by itself."""
    while process.hear(0.1) is not None:
        pass
    return process.end()


def test_a_forked_run_finds_what_one_started_by_itself_finds(server: ForkServer, start: Start, tmp_path: Path) -> None:
    """Its parent, session, descriptors, variables, signals, command and directory are those of a run of its own."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    secret = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    found = []
    for each in (ColdReason.SWITCHED_OFF, server):
        process = start(each, lock=lock, TRACEPARENT=f"00-{len(found)}")
        assert (process.cold_reason is None) == (each is server)
        about = heard(process)
        assert about["command"][-3:] == about["arguments"][1:]
        assert about["arguments"].pop() == str(os.getpid())
        assert about["environment"].pop("TRACEPARENT") == f"00-{len(found)}"
        kinds = sorted(path.partition(":")[0].replace(f"/{len(found)}/", "/") for path in about["descriptors"].values())
        folder = about["arguments"].pop(1)
        about["command"] = about["command"][:3]
        del about["drawn"], about["arguments"][1:]
        found.append({**about, "descriptors": kinds})
        assert ended(process) == (0, [])
        assert (Path(folder) / "log.txt").read_text() == "it does: leave\n"
    os.close(lock)
    os.close(secret)
    cold, warm = found
    assert warm == cold
    assert warm["parent"] == os.getpid()
    assert warm["leads_session"]
    assert warm["descriptors"] == sorted(["pipe", "pipe", *[str(tmp_path / "log.txt")] * 2, str(tmp_path / "lock")])


@pytest.mark.parametrize("server", [{"TAFDIL_TEST_PRELOAD": "numpy"}], indirect=True)
def test_runs_do_not_draw_the_same_numbers(server: ForkServer, start: Start) -> None:
    drawn = []
    for _ in range(2):
        process = start(server, TAFDIL_TEST_PRELOAD="numpy")
        assert process.cold_reason is None, "OpenBLAS' threads end before the fork"
        drawn.append(heard(process)["drawn"])
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


@pytest.mark.parametrize(("do", "code"), [("7", 7), ("raise", 1)])
def test_exit_codes(server: ForkServer, start: Start, tmp_path: Path, do: str, code: int) -> None:
    assert ended(start(server, do)) == (code, [])
    assert ("RuntimeError: as asked" in (tmp_path / "0" / "log.txt").read_text()) == (do == "raise")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_signals(server: ForkServer, start: Start, number: signal.Signals) -> None:
    process = start(server, "sleep")
    assert process.cold_reason is None
    process._signal(number)  # whether its session is there by now or not
    assert ended(process)[0] == -number


def test_requests_reach_its_input(server: ForkServer, start: Start, tmp_path: Path) -> None:
    process = start(server, "read")
    process.ask_to_stop()
    assert ended(process)[0] == 0
    assert "stop" in (tmp_path / "0" / "log.txt").read_text() or "ping" in (tmp_path / "0" / "log.txt").read_text()


def test_what_a_run_leaves_behind_ends_with_it(server: ForkServer, start: Start) -> None:
    """Also what left its group; and nothing stays a zombie of the supervisor."""
    process = start(server, "leave children")
    children = set(heard(process) and until(lambda: session_processes(process.pid)[1:]))
    assert ended(process) == (0, [])
    assert not alive(children)
    assert [child.pid for child in psutil.Process().children()] == [server.pid]


def test_a_run_outlives_its_server(server: ForkServer, start: Start) -> None:
    """The server is killed during a run: that run continues, the next one starts cold, and the one after it is forked."""
    first = start(server, "sleep")
    heard(first)
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    second = start(server)
    assert second.cold_reason is ColdReason.LOST
    assert ended(second)[0] == 0
    assert alive({first.pid})
    third = start(server)
    assert third.cold_reason is None
    assert ended(third)[0] == 0
    first.kill()
    assert ended(first)[0] == -signal.SIGKILL


def test_a_server_that_stands_still_is_replaced(server: ForkServer, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(start(server))[0] == 0
    monkeypatch.setattr(warm_start, "_ANSWER_TIMEOUT_S", 0.3)
    pid = server.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    assert start(server).cold_reason is ColdReason.LOST
    assert not alive({pid})
    monkeypatch.setattr(warm_start, "_ANSWER_TIMEOUT_S", 10)
    assert start(server).cold_reason is None


def test_a_server_that_dies_in_the_middle_of_a_fork_leaves_no_process(server: ForkServer, tmp_path: Path) -> None:
    """The supervisor never learns of the process: it has not begun, and it is gone."""
    waiting, input_ = os.pipe()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    server._await_ready(lambda: False)
    assert server._channel
    request = {"folder": str(tmp_path), "directory": str(tmp_path), "parent": os.getpid(), "environment": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_receive", lambda _: None)  # the answer is lost
        with pytest.raises(warm_start.ColdStart, match="lost"):
            server._ask(request, [waiting, log, log])
    for descriptor in (waiting, input_, log):
        os.close(descriptor)
    assert (tmp_path / "log").read_text() == ""
    assert {child.pid for child in psutil.Process().children()} == {server.pid}


def test_a_server_of_older_code_is_replaced(server: ForkServer, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(start(server))[0] == 0
    before = server.pid
    monkeypatch.setattr(warm_start, "code_stamp", lambda: "another")
    assert start(server).cold_reason is ColdReason.CODE_CHANGED
    assert start(server).cold_reason is None
    assert server.pid != before


def test_the_stamp_follows_the_code_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker").mkdir()
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.setattr(warm_start, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [str(packages)])
    stamps = [warm_start.code_stamp(), warm_start.code_stamp()]
    assert stamps[0] == stamps[1]
    (tmp_path / "worker" / "child.py").write_text("new")
    stamps.append(warm_start.code_stamp())
    (packages / "torch-9.9.dist-info").mkdir()
    stamps.append(warm_start.code_stamp())
    assert len(set(stamps)) == 3


def test_a_run_with_other_variables_starts_by_itself(server: ForkServer, start: Start) -> None:
    process = start(server, HF_HUB_OFFLINE="1")
    assert process.cold_reason is ColdReason.ENVIRONMENT
    assert heard(process)["environment"]["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("server", [{"TAFDIL_TEST_PRELOAD": "thread"}], indirect=True)
def test_a_server_with_a_thread_forks_nothing(server: ForkServer, start: Start) -> None:
    for _ in range(2):
        process = start(server, TAFDIL_TEST_PRELOAD="thread")
        assert process.cold_reason is ColdReason.UNFIT
        assert ended(process)[0] == 0
    assert server.pid is None, "it takes no memory"


@pytest.mark.parametrize("server", [{"TAFDIL_TEST_PRELOAD": "exit"}], indirect=True)
def test_a_server_that_cannot_import_is_given_up(server: ForkServer, start: Start) -> None:
    reasons = [start(ColdReason.SWITCHED_OFF).cold_reason]
    for _ in range(4):
        process = start(server, TAFDIL_TEST_PRELOAD="exit")
        reasons.append(process.cold_reason)
    assert reasons[1:4] == [ColdReason.LOST] * 3
    assert (reasons[4], server.pid) == (ColdReason.UNFIT, None)


def test_a_failure_on_the_way_to_the_server_costs_no_run(
    server: ForkServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(warm_start.socket, "send_fds", fail)
        process = start(server)
    assert process.cold_reason is ColdReason.LOST
    assert ended(process)[0] == 0


def test_what_is_not_a_module_is_not_forked(start: Start) -> None:
    server = ForkServer((sys.executable, "-c", "pass"), whole_environment({}))
    server.start()
    assert start(server).cold_reason is ColdReason.UNSUPPORTED


def test_an_initialised_gpu_forbids_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from worker import fork_server

    torch = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert fork_server.unfit() == "it has initialised a GPU"


def test_jobs_that_need_bitsandbytes(tmp_path: Path) -> None:
    needs = warm_start.needs_bitsandbytes
    assert not needs({"load_in_4bit": False, "ref_load_in_4bit": None, "optim": "adamw_torch_fused"}, {})
    assert needs({"load_in_4bit": True}, {})
    assert needs({"ref_load_in_4bit": True}, {})
    assert needs({"optim": "paged_adamw_32bit"}, {})
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    assert needs({}, {"a base in 4 bit": str(tmp_path)})


def test_a_supervisor_that_is_killed_takes_server_and_run_along(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from worker.training_process import TrainingProcess, session_processes, whole_environment
from worker.warm_start import ForkServer
command = {COMMAND!r}
server = ForkServer(command, whole_environment({{}}))
server.start()
(Path({str(tmp_path)!r}) / "do").write_text("sleep")
process = TrainingProcess(command, Path({str(tmp_path)!r}), {{}}, None, server=server)
while not process.hear(0.1):
    pass
print(process.cold_reason, process.pid, server.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout
        reason, *pids = supervisor.stdout.readline().split()
        assert reason == "None"
        assert alive({int(pid) for pid in pids}) == {int(pid) for pid in pids}
        supervisor.kill()
    until(lambda: not alive({int(pid) for pid in pids}))


def test_a_hundred_runs_leak_nothing(server: ForkServer, start: Start) -> None:
    """Descriptors, processes and memory of the server and of its supervisor, after the first runs and after the last."""

    def held() -> tuple[int, int, int]:
        assert server.pid
        of_server = psutil.Process(server.pid)
        return len(os.listdir("/proc/self/fd")), of_server.num_fds(), len(psutil.Process().children(recursive=True))

    def memory() -> int:
        return psutil.Process(server.pid).memory_full_info().uss

    for number in range(100):
        process = start(server)
        assert process.cold_reason is None
        assert ended(process) == (0, [])
        if number == 9:
            before, bytes_before = held(), memory()
    assert held() == before
    assert memory() - bytes_before < 2**20


def test_the_socket_is_the_supervisors_alone(server: ForkServer) -> None:
    """Nothing has a name that another user could connect to, or that could be left behind."""
    server._await_ready(lambda: False)
    assert server._channel
    assert server._channel.getsockname() == ""
    assert server._channel.family == socket.AF_UNIX
