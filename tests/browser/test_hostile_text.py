"""Text of users on every page: it runs nothing, reorders nothing, and what cannot be seen is shown."""

import json
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from jobs.places import run_dir
from jobs.repository import jobs, metrics
from jobs.states import Cause
from tests.browser.chromium import Screen, screen
from tests.browser.seed import Seeded
from trainer_core.errors import error_dict

SCRIPTS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "javascript:alert(4)",
    "</bdi></td></tr></table><iframe srcdoc='<script>alert(5)</script>'>",
    "{{constructor.constructor('alert(6)')()}}",
    "${alert(7)}",
    "<a href=javascript:alert(8)>click</a>",
    "<style>*{display:none}</style>",
    "&lt;script&gt;alert(9)&lt;/script&gt;",
]
# An override, embeddings, isolates that are never closed, marks, a tag, a soft hyphen, a bell, a terminal's command.
CONTROLS = {
    "\u202e": "\\u202e",
    "\u202a": "\\u202a",
    "\u202b": "\\u202b",
    "\u202d": "\\u202d",
    "\u2066": "\\u2066",
    "\u2067": "\\u2067",
    "\u2068": "\\u2068",
    "\u200e": "\\u200e",
    "\u200f": "\\u200f",
    "\u061c": "\\u061c",
    "\u200b": "\\u200b",
    "\ufeff": "\\ufeff",
    "\u00ad": "\\u00ad",
    "\x07": "\\u0007",
    "\U000e0041": "\\U000e0041",
}
HOSTILE = "ا" + "".join(CONTROLS) + " ".join(SCRIPTS) + "abc\u202egnirts"
TERMINAL = "\x1b[31mred\x1b[0m \x1b]8;;http://elsewhere\x07link\x1b]8;;\x07"


@pytest.fixture(scope="module")
def attacked(seeded: Seeded) -> dict[str, str]:
    """A job, its rows and all that it told, full of such text."""
    row = {"prompt": HOSTILE, "chosen": HOSTILE, "rejected": HOSTILE + "!"}
    reply = httpx.post(f"{seeded.live.url}/v1/datasets", params={"name": HOSTILE[:150]}, content=json.dumps(row))
    assert reply.status_code == 201, reply.text
    # The one that waits stands first in the queue.
    httpx.post(f"{seeded.live.url}/v1/jobs/{seeded.jobs['queued']}/pause").raise_for_status()
    job_id = seeded.submit(HOSTILE[:200])
    fence = seeded.claim(job_id)
    with seeded.live.database.transaction() as session:
        jobs.record(
            session, fence, "samples", {"step": 1, "samples": [{"prompt": HOSTILE, "response": HOSTILE, "tokens": 3}]}
        )
        jobs.record(
            session, fence, "samples", {"step": 2, "samples": [{"prompt": HOSTILE, "response": HOSTILE[::-1], "tokens": 3}]}
        )
        metrics.add(session, job_id, 1, 1, {HOSTILE[:90]: 1.0})
        jobs.add_warning(session, fence, {"code": HOSTILE[:60], "message": HOSTILE})
    log = run_dir(seeded.live.settings, job_id) / "attempt-1" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text(HOSTILE + TERMINAL, encoding="utf-8")
    failed = seeded.submit(HOSTILE[:100])
    seeded.finish(fence, Cause.FINISH, artifact_path=f"{job_id}/attempt-1/output", metadata_={"note": HOSTILE})
    seeded.finish(seeded.claim(failed), Cause.FAIL, error=error_dict("internal", HOSTILE))
    seeded.compared(job_id, HOSTILE, HOSTILE, HOSTILE + " more")
    return {"job": job_id, "failed": failed, "dataset": reply.json()["id"]}


PLACES = {
    "jobs": "jobs",
    **{part: f"jobs/{{job}}/{part}" for part in ("curves", "samples", "events", "logs", "metadata")},
    "error": "jobs/{failed}",
    "compare": "jobs/{job}/compare",
    "overlay": "curves/{job},{failed}",
    "datasets": "datasets",
    "dataset": "datasets/{dataset}",
    "clone": "new?from={job}",
}


@pytest.mark.parametrize("name", PLACES)
def test_hostile_text_is_shown_and_never_obeyed(
    browser: Browser, seeded: Seeded, attacked: dict[str, str], name: str
) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        # Counted from before the first script: what the policy refused would be found here.
        found.page.add_init_script(
            "window.refused = [];"
            "document.addEventListener('securitypolicyviolation', (event) => refused.push(event.violatedDirective))"
        )
        page = found.open(PLACES[name].format(**attacked))
        if name == "compare":
            page.locator(".history button").first.click()
            page.locator(".sides").wait_for()
        found.unfold()
        found.keep(f"hostile-{name}")
        page.wait_for_timeout(200)
        assert page.evaluate("window.refused") == []
        assert page.locator("iframe, img, svg, main script, main style, a[href^='javascript']").count() == 0
        text = page.evaluate("document.querySelector('main').textContent")
        assert not set(text) & set(CONTROLS)
        if name not in ("overlay", "clone"):
            assert "<script>alert(1)</script>" in text
            assert "\\u202e" in text
        if name == "logs":
            assert "red link" in text
            assert "\x1b" not in text


def test_what_cannot_be_seen_is_escaped_one_by_one(browser: Browser, seeded: Seeded, attacked: dict[str, str]) -> None:
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open(f"jobs/{attacked['job']}/logs")
        expect(page.locator("pre"), "it is there to its end").to_contain_text("red link")
        shown = page.locator("pre .control").all_text_contents()
        assert set(CONTROLS.values()) <= set(shown)


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_name_leaves_the_order_of_its_neighbours(
    browser: Browser, seeded: Seeded, attacked: dict[str, str], language: str
) -> None:
    """The cells of a row stand in the same order, and their words run the same way, whatever the name beside them."""
    with screen(browser, seeded.live.url, language) as found:
        found.open("jobs")

        def order(job_id: str) -> list[Any]:
            row = found.page.locator(f"tr:has(a[href='#/jobs/{job_id}'])")
            expect(row).to_be_visible()
            cells = row.locator("td").evaluate_all("(cells) => cells.map((cell) => cell.getBoundingClientRect().x)")
            model = row.locator("td code").evaluate(_LETTERS)
            return [sorted(range(len(cells)), key=cells.__getitem__), model == sorted(model)]

        plain = order(seeded.jobs["succeeded"])
        assert order(attacked["job"]) == plain
        assert plain[1]


# Where the first letters of a text stand, from left to right.
_LETTERS = """
(element) => [...Array(6).keys()].map((place) => {
  const range = document.createRange();
  range.setStart(element.firstChild, place);
  range.setEnd(element.firstChild, place + 1);
  return range.getBoundingClientRect().x;
})
"""


def test_arabic_reads_from_right_to_left_in_an_english_page(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        page = _compared(found, seeded)
        answer = page.locator(".sides .block").last
        assert answer.evaluate("(element) => element.matches(':dir(rtl)')")
        places = answer.locator("ins").first.evaluate(_LETTERS)
        assert places == sorted(places, reverse=True)
        marked = answer.locator("ins").all_text_contents()
        assert "شكرًا لك،" in " ".join(marked).strip()


def _compared(found: Screen, seeded: Seeded) -> Any:
    page = found.open(f"jobs/{seeded.jobs['succeeded']}/compare")
    page.locator(".history button").first.click()
    page.locator(".sides").wait_for()
    return page
