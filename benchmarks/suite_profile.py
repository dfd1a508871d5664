"""Where the tests' time goes, by file: `PYTEST_ADDOPTS="-p benchmarks.suite_profile" make test`.

A pytest plugin. For each file it prints the seconds that its tests took, the CPU seconds of the runner's own process and of
the processes that tests started and that have ended, and what is left, waiting: for a process still at work, a clock or a
busy core. The slowest tests follow.
"""

import resource
from collections import defaultdict
from collections.abc import Generator

import pytest

PARTS = ("own CPU", "processes' CPU")
SLOWEST = 60


def cpu_seconds() -> tuple[float, float]:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


class Profile:
    """Each phase of a test adds its CPU time to its report; the process that prints adds the reports up."""

    def __init__(self) -> None:
        self.last = (0.0, 0.0)
        self.tests: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def pytest_collection_finish(self) -> None:
        self.last = cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = cpu_seconds()
        report.user_properties += [(part, now[i] - self.last[i]) for i, part in enumerate(PARTS)]
        self.last = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A report carries the properties of the phases before it, too: the last of each name is its own.
        found = dict(report.user_properties)
        row = self.tests[report.nodeid]
        row[0] += report.duration
        for i, part in enumerate(PARTS, 1):
            row[i] += float(found[part])  # pyright: ignore[reportArgumentType]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: dict[str, list[list[float]]] = defaultdict(list)
        for name, row in self.tests.items():
            files[name.partition("::")[0]].append(row)
        write = terminalreporter.write_line
        write("\n| file | tests | seconds | own CPU | processes' CPU | waiting |\n| --- | --- | --- | --- | --- | --- |")
        sums = {name: [sum(column) for column in zip(*rows, strict=True)] for name, rows in files.items()}
        for name, row in sorted(sums.items(), key=lambda item: -item[1][0]):
            write(line(name, len(files[name]), row))
        write(line("all", len(self.tests), [sum(column) for column in zip(*sums.values(), strict=True)]))
        write(f"\nThe slowest {SLOWEST}:")
        for name, row in sorted(self.tests.items(), key=lambda item: -item[1][0])[:SLOWEST]:
            write(line(name, 1, row))


def line(name: str, tests: int, row: list[float]) -> str:
    seconds, own, children = row
    return f"| {name} | {tests} | {seconds:.0f} | {own:.0f} | {children:.0f} | {max(0.0, seconds - own - children):.0f} |"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Profile())
