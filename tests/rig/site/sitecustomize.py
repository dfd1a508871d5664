"""Read by Python at the start of every process of a rig: installs what the environment asks for."""

import os

if os.environ.get("TAFDIL_TEST_FAILPOINT"):
    from tests.rig import failpoints

    failpoints.install(os.environ["TAFDIL_TEST_FAILPOINT"])

if os.environ.get("TAFDIL_TEST_ORDERS"):
    from tests.rig import grey_points

    grey_points.install(os.environ["TAFDIL_TEST_ORDERS"], os.environ.get("TAFDIL_TEST_ROLE", ""))

if os.environ.get("TAFDIL_TEST_CLOCK_OFF_S"):
    # The clock of another host, as this process sees it. libfaketime would do the same, but breaks absolute sleeps.
    import time

    _real, _off_s = time.time, float(os.environ["TAFDIL_TEST_CLOCK_OFF_S"])
    time.time = lambda: _real() + _off_s
    time.time_ns = lambda: int((_real() + _off_s) * 1e9)
