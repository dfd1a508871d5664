"""A few grey faults on a rig, and their table, causes and judges. `python -m benchmarks.grey_chaos` runs longer."""

import random
import re
import socket
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import grey_chaos, grey_faults
from benchmarks.grey_chaos import Fault, judge_requests, latencies, parse, run
from benchmarks.grey_load import Asked
from benchmarks.grey_table import FAULTS, REASONS, TABLE, Cell, cells, table
from tests.rig import grey_points, history
from tests.rig.proxy import Proxy
from tests.rig.stack import find_postgres
from tests.stack import until

ROOT = Path(__file__).resolve().parents[2]
# Ways to cause a fault that differ most, and those that once left a request unanswered.
CELLS = (
    "API/frozen/requests",
    "API/hole/broker",
    "API/load/submits",
    "API/memory",
    "database/frozen/every connection",
    "dispatcher/frozen/transaction",
    "supervisor/half-open/database",
)
SEED = 20261129


def test_nobody_waits_for_the_faults_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    """No request unanswered after 10 s; nothing lost, run twice or stuck."""
    database = "postgresql" if find_postgres("initdb") else "sqlite"
    options = ["--faults", str(len(CELLS)), "--minutes", "10", "--database", database, "--seed", str(SEED), "--workers", "2"]
    well = run(parse([*options, "--without-answers", "--only", *CELLS]))
    told = capsys.readouterr().out
    assert well, told
    caused = re.search(r'"faults": (\d+)', told)
    assert caused, told
    assert int(caused[1]) >= len(CELLS) // 2, "most parts held what the fault is about"


def test_every_cell_of_the_table_is_a_fault_or_says_why_not() -> None:
    assert all(list(row) == list(FAULTS) for row in TABLE.values())
    found = [each for row in TABLE.values() for each in row.values()]
    assert all(each in REASONS if isinstance(each, str) else each for each in found)
    assert set(REASONS) == {each for each in found if isinstance(each, str)}, "each reason is used"
    assert len(set(cells())) == len(cells()) > 80
    assert all(hasattr(grey_faults.Causes, f"_{fault.replace(' ', '_').replace('-', '_')}") for fault in FAULTS)
    chance = random.Random(1)
    for cell in cells():
        assert all(0 < grey_faults.seconds_of(cell, chance) < 14 for _ in range(50))


def test_the_table_is_in_the_documentation() -> None:
    assert table() in (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def _fault(cell: Cell, began_at: float, ended_at: float) -> Fault:
    return Fault(cell, began_at, ended_at, ended_at)


def test_the_judge_finds_what_is_wrong() -> None:
    frozen = _fault(Cell("broker", "frozen", "messages"), 10, 20)
    away = _fault(Cell("database", "frozen", "every connection"), 30, 40)
    ended = _fault(Cell("API", "memory", "requests"), 50, 60)
    locked = _fault(Cell("dispatcher", "frozen", "transaction"), 70, 80)
    faults = [frozen, away, ended, locked]

    def found(at: float, status: int, database: str = "postgresql") -> set[str]:
        return set(judge_requests([Asked("read", at, at + 1, status)], faults, database))

    assert found(12, 200) == found(35, 503) == found(52, 0) == found(1, 202) == set()
    assert found(12, -1) == found(35, -1) == found(52, -1) == {"unanswered"}, "nothing excuses this"
    assert found(12, 503) == found(1, 503) == {"refused"}
    assert found(12, 0) == found(35, 0) == {"broken"}
    assert found(35, 500) == found(52, 404) == {"wrong"}
    assert found(72, 503, "sqlite") == set()
    assert found(72, 503) == {"refused"}, "only a file has one writer at a time"
    assert found(12, 408) == {"wrong"}
    times = latencies([Asked("read", 12, 13, 200), Asked("read", 1, 3, 200)], faults)
    assert times["broker/frozen"]["read"]["max_s"] == 1
    assert times["all"]["read"] == {"n": 2, "p50_s": 1.5, "p99_s": 2, "max_s": 2}
    assert set(times) == {"all", "no fault", "broker/frozen"}


def test_runs_that_continued_are_counted() -> None:
    fault = _fault(Cell("broker", "frozen", "messages"), 10, 20)
    lines = [{"what": "step", "job": "a", "at": at} for at in (5, 25)]
    assert grey_chaos.continued(lines, [fault], {"a"}) == 0
    assert grey_chaos.continued([*lines, {"what": "step", "job": "a", "at": 15}], [fault], {"a"}) == 1
    assert grey_chaos.continued([{"what": "step", "job": "b", "at": 15}], [fault], {"a"}) == 0


def test_the_proxy_slows_holds_back_and_loses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            while True:
                try:
                    near, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(near,), daemon=True).start()

        def answer(near: socket.socket) -> None:
            while data := near.recv(100):
                near.sendall(data)
            near.close()

        threading.Thread(target=echo, daemon=True).start()
        proxy = Proxy(server.getsockname()[1])
        with closing(socket.create_connection(("127.0.0.1", proxy.port), 60)) as one:
            one.sendall(b"a")
            assert one.recv(9) == b"a"
            proxy.is_hole = True
            one.sendall(b"b")
            one.settimeout(0.3)
            with pytest.raises(TimeoutError):
                one.recv(9)
            proxy.mend()
            one.settimeout(60)
            assert one.recv(9) == b"b"
            assert proxy.lose_connections() == 1
            one.sendall(b"c")
            one.settimeout(0.3)
            with pytest.raises(TimeoutError):
                one.recv(9)
            with closing(socket.create_connection(("127.0.0.1", proxy.port), 60)) as other:
                other.sendall(b"d")
                assert other.recv(9) == b"d", "new connections work"
                proxy.delay_s = 0.2
                before = time.monotonic()
                other.sendall(b"e")
                assert other.recv(9) == b"e"
                assert time.monotonic() - before >= 0.4, "once on the way there, once on the way back"
            proxy.mend()
            one.settimeout(60)
            with pytest.raises(ConnectionResetError):
                one.recv(9)
        until(lambda: not proxy._pairs)
        proxy.close()


def test_orders_are_for_one_role_and_a_token_for_one_process(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    orders = grey_points.Orders(str(path), "api")
    assert orders.get("sync_s") is None
    grey_points.give(path, {"sync_s": {"api": 0.5}, "freeze": {"dispatcher": "t"}})
    assert (orders.get("sync_s"), orders.get("freeze")) == (0.5, None)
    grey_points.give(path, {})
    assert orders.get("sync_s") is None
    assert orders.is_first("t")
    assert not grey_points.Orders(str(path), "dispatcher").is_first("t")


def test_only_whole_new_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "h"
    tail = history.Tail(path)
    assert tail.more() == []
    path.write_text('{"a": 1}\n{"a"')
    assert tail.more() == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert tail.more() == [{"a": 2}]
    assert tail.more() == []
