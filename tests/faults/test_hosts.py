"""Hosts that are cut off, clocks that are wrong, and dispatchers that die.

A network namespace stands in for a second host; the test skips where none can be made.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator

import pytest

from tests.faults.conftest import StartRig
from tests.faults.test_processes import _over, finished, the_training
from tests.forking import NEW_NETWORK
from tests.rig.stack import job_spec, running
from tests.stack import alive, until


@pytest.fixture
def network() -> Generator[tuple[str, str]]:
    """A network of the test's own with a link, `to_far`, to another host; gives the address here and the host's namespace.

    The machine's own network stays as it is: browsers drop what they are loading when an address appears there.
    """
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs `ip` and network namespaces")
    libc = ctypes.CDLL(None, use_errno=True)
    here, far = "10.213.77.1", f"tafdil{os.getpid()}"
    setup = (
        "ip link set lo up",
        f"ip netns add {far}",
        f"ip link add to_far type veth peer name to_here netns {far}",
        f"ip addr add {here}/30 dev to_far",
        "ip link set to_far up",
        f"ip -n {far} addr add 10.213.77.2/30 dev to_here",
        f"ip -n {far} link set to_here up",
        f"ip -n {far} link set lo up",
    )
    with open("/proc/thread-self/ns/net", "rb") as machine:
        try:
            if libc.unshare(NEW_NETWORK) or any(subprocess.run(line.split(), check=False).returncode for line in setup):
                pytest.skip("needs root and network namespaces")
            yield here, far
        finally:
            libc.setns(machine.fileno(), NEW_NETWORK)
            subprocess.run(["ip", "netns", "del", far], capture_output=True, check=False)


def test_a_host_that_is_cut_off(network: tuple[str, str], start_rig: StartRig) -> None:
    """The network to a worker's host goes away: another worker takes the job over. When it is back, nothing changes."""
    here, far = network
    rig, client = start_rig(workers=0, database="postgresql", settings={"TAFDIL_TEST_ADDRESS": here})
    rig.add_worker("far-worker", rig.seen_from(here), ["ip", "netns", "exec", far])
    job_id = client.submit(job_spec(100, behaviour={"linger_at": 20}))["id"]
    running(client, job_id, 20)
    training = the_training(rig, job_id)
    rig.add_worker("near-worker", {})
    subprocess.run(["ip", "link", "set", "to_far", "down"], check=True)
    until(lambda: client.job(job_id)["attempt"] == 2)
    job = until(lambda: _over(client, job_id))
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    before = list(client.events(job_id))
    subprocess.run(["ip", "link", "set", "to_far", "up"], check=True)
    until(lambda: not alive({training}))
    time.sleep(2)
    assert list(client.events(job_id)) == before
    assert client.metadata(job_id)["attempt"] == 2
    first, second = client.attempts(job_id)
    assert (first["outcome"], second["outcome"]) == ("worker_lost", "succeeded")
    rig.kill_group("far-worker")


@pytest.mark.parametrize("off_s", [3600, -3600])
def test_a_host_whose_clock_is_wrong(start_rig: StartRig, off_s: int) -> None:
    """Leases go by the database's clock: a worker and a dispatcher that are an hour off take nothing from anybody."""
    wrong = {"TAFDIL_TEST_CLOCK_OFF_S": str(off_s)}
    rig, client = start_rig(
        workers=2, dispatchers=2, database="postgresql", each={"train-worker-1": wrong, "dispatcher-1": wrong}
    )
    jobs = [client.submit(job_spec(80, behaviour={"step_s": 0.1}))["id"] for _ in range(2)]
    for job_id in jobs:
        running(client, job_id)
    for job_id in jobs:
        assert finished(rig, client, job_id, 80)["attempt"] == 1


def test_a_dispatcher_that_dies_has_another_beside_it(start_rig: StartRig) -> None:
    """Any number of dispatchers may run; leases are taken back while one does, and readiness tells when none does."""
    rig, client = start_rig(workers=1, dispatchers=2)
    job_id = client.submit(job_spec(160, behaviour={"linger_at": 6}))["id"]
    running(client, job_id, 6)
    rig.stand_still(rig.pid("dispatcher-1"))
    os.kill(rig.supervisor_of(the_training(rig, job_id)), signal.SIGKILL)
    assert finished(rig, client, job_id, 160)["attempt"] == 2

    other = client.submit(job_spec(160, behaviour={"linger_at": 6}))["id"]
    running(client, other, 6)
    rig.stand_still(rig.pid("dispatcher-2"))
    os.kill(rig.supervisor_of(the_training(rig, other)), signal.SIGKILL)
    until(lambda: not client.ready())
    os.kill(rig.pid("dispatcher-2"), signal.SIGCONT)
    until(client.ready)
    assert finished(rig, client, other, 160)["attempt"] == 2
    os.kill(rig.pid("dispatcher-1"), signal.SIGCONT)
