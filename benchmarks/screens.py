"""Are the dashboard's screens quick however much there is? `python -m benchmarks.screens` (needs a Chromium).

A service with 10,000 queued jobs and one run of 100,000 metric points (10 curves), and headless Chromium on the same
machine. A time is from the click or the address to what a person waits for: rows in the list, curves on the page. Each page
is new; the median of several and the slowest are told.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page
from pydantic import SecretStr

from jobs.settings import Settings
from tests.browser.chromium import Screen, chromium, screen
from tests.browser.seed import Seeded
from tests.live import serving

STEPS, CURVES, JOBS = 10_000, 10, 10_000
_CHARTS = "figure canvas"


def timed(prepare: Callable[[], None], act: Callable[[], object], until: str, page: Page) -> float:
    """Seconds from an act to the first element that a selector finds."""
    prepare()
    began = time.perf_counter()
    act()
    page.locator(until).first.wait_for()
    return time.perf_counter() - began


def measure(found: Screen, run: str, repeats: int) -> dict[str, list[float]]:
    page, url = found.page, found.url
    blank: Callable[[], None] = lambda: (page.goto("about:blank"), None)[1]  # noqa: E731
    older = "tr:has-text('job 9949')"

    def listed() -> None:
        blank()
        page.goto(f"{url}/#/jobs")
        page.locator("tbody tr").first.wait_for()

    def drawn() -> None:
        blank()
        page.goto(f"{url}/#/jobs/{run}")
        page.locator(_CHARTS).first.wait_for()

    def zoom() -> None:
        page.locator(".zoom input").nth(0).fill("4000")
        page.locator(".zoom input").nth(1).fill("6000")
        with page.expect_response(lambda reply: "first_step=4000" in reply.url) as answered:
            found.button("chart.zoom").click()
        answered.value.finished()

    cases: dict[str, tuple[Callable[[], None], Callable[[], object], str]] = {
        "list of jobs, from nothing": (blank, lambda: page.goto(f"{url}/#/jobs"), "tbody tr"),
        "next page of the list": (listed, found.button("jobs.older").click, older),
        "filter by state": (
            listed,
            lambda: page.get_by_label(found.say("jobs.state")).select_option("running"),
            "tbody .running",
        ),
        "job with its curves, from nothing": (blank, lambda: page.goto(f"{url}/#/jobs/{run}"), _CHARTS),
        "zoom into a fifth of the steps": (drawn, zoom, _CHARTS),
    }
    return {name: [timed(*case, page) for _ in range(repeats)] for name, case in cases.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), redis_url=SecretStr("redis://127.0.0.1:1/0"))
        settings.make_directories()
        with serving(settings) as live, chromium() as browser:
            seeded = Seeded(live)
            run = seeded.long_run(STEPS, CURVES)
            seeded.copies(JOBS)
            with screen(browser, live.url, "en") as found:
                results = measure(found, run, arguments.repeats)
    print("| screen | median, ms | slowest, ms |\n|---|---|---|")
    for name, seconds in results.items():
        print(f"| {name} | {1000 * statistics.median(seconds):.0f} | {1000 * max(seconds):.0f} |")


if __name__ == "__main__":
    main()
