"""Pages that move: a job while it trains, curves under the mouse and the keyboard, actions and what they ask first."""

import json
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from pydantic import SecretStr

from jobs.repository import jobs, metrics
from jobs.settings import Settings
from jobs.states import Cause, PauseReason, Request
from tests.browser.chromium import screen
from tests.browser.seed import Seeded
from tests.live import serving

SHOWN = "/metrics?"
# `--paper` of the dark colours.
DARK = "rgb(20, 24, 28)"


@pytest.fixture
def empty(tmp_path: Path) -> Generator[Seeded]:
    """A service where nothing happened yet."""
    settings = Settings(data_dir=tmp_path, redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    with serving(settings) as live:
        yield Seeded(live)


def test_a_job_is_watched_without_a_reload(browser: Browser, empty: Seeded) -> None:
    with screen(browser, empty.live.url, "en") as found:
        page = found.open("jobs")
        page.get_by_text(found.say("jobs.none")).wait_for()
        job_id = empty.submit("watched")
        page.get_by_role("link", name="watched").click()
        expect(page.locator(".head .state")).to_contain_text("Queued")
        expect(page.locator(".standing")).to_contain_text(found.say("job.place", n=1))
        fence = empty.claim(job_id)
        empty.train(fence, 30)
        expect(page.locator(".head .state")).to_contain_text("Running")
        expect(page.locator(".standing")).to_contain_text("training")
        expect(page.locator(".facts")).to_contain_text("30 / 60")
        expect(page.locator("figure", has_text="Loss")).to_be_visible()
        page.get_by_role("link", name="Events").click()
        expect(page.locator("tbody tr").first).to_contain_text("Checkpoint saved")
        with empty.live.database.transaction() as session:
            jobs.add_warning(session, fence, {"code": "collapse", "message": "answers repeat themselves"})
        expect(page.locator("tbody tr").first).to_contain_text("answers repeat themselves")
        expect(page.locator(".box.warning")).to_contain_text("answers repeat themselves")
        page.get_by_role("link", name="Log", exact=True).click()
        expect(page.locator("pre")).to_contain_text("step 1 loss 0.5")
        empty.succeed(fence)
        expect(page.locator(".head .state")).to_contain_text("Succeeded")
        page.get_by_role("link", name="Files").click()
        expect(page.get_by_role("link", name="adapter_model.safetensors")).to_have_attribute(
            "href", f"/v1/jobs/{job_id}/artifacts/{_artifact(empty, job_id)}"
        )


def test_curves_that_hardly_differ_are_drawn(browser: Browser, empty: Seeded) -> None:
    """Before the first step two ways to compute a loss differ by rounding, and the chart divides that."""
    job_id = empty.submit("watched")
    fence = empty.claim(job_id)
    with empty.live.database.transaction() as session:
        metrics.add(session, fence.job_id, fence.attempt, 0, {"eval_loss": 1.0, "eval_preference_loss": 1.0000000123})
    with screen(browser, empty.live.url, "en") as found:
        page = found.open(f"jobs/{job_id}")
        expect(page.locator("figure .u-over").first).to_be_visible()
        empty.train(fence, 10)
        expect(page.locator("figure .u-over").first).to_be_visible()


def _artifact(empty: Seeded, job_id: str) -> str:
    return httpx.get(f"{empty.live.url}/v1/jobs/{job_id}/artifacts").json()["artifacts"][0]["id"]


def test_a_stream_that_breaks_is_taken_up_where_it_broke(browser: Browser, empty: Seeded) -> None:
    job_id = empty.submit("watched")
    fence = empty.claim(job_id)
    with httpx.stream("GET", f"{empty.live.url}/v1/jobs/{job_id}/events") as reply:
        texts = reply.iter_text()
        begun = ""
        while "event: claimed" not in begun:
            begun += next(texts)
    with screen(browser, empty.live.url, "en") as found:
        # A proxy that ends the stream after what was there.
        answer = {"body": begun, "content_type": "text/event-stream"}
        found.page.route("**/events?after=0&*", lambda route: route.fulfill(**answer))
        with found.page.expect_request(lambda request: "/events?after=2" in request.url):
            page = found.open(f"jobs/{job_id}/events")
            expect(page.locator("tbody tr")).to_have_count(2)
        with empty.live.database.transaction() as session:
            jobs.record(session, fence, "checkpoint", {"step": 1})
        expect(page.locator("tbody tr")).to_have_count(3)


def legend(page: Page, title: str) -> Locator:
    return page.locator("figure", has=page.get_by_text(title, exact=True)).locator(".u-legend")


def test_curves_answer_the_mouse(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        page = found.open(f"jobs/{seeded.jobs['succeeded']}")
        plot = page.locator("figure", has=page.get_by_text("Loss", exact=True)).locator(".u-over")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        expect(page.locator("figure").first.locator(".u-legend")).to_contain_text("30")
        # The cursor is shared: other charts tell their value at the same step.
        expect(legend(page, "Margins")).to_contain_text("30")
        with page.expect_response(lambda reply: SHOWN in reply.url and "first_step=" in reply.url) as zoomed:
            page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
            page.mouse.down()
            page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20, steps=4)
            page.mouse.up()
        steps = [point["step"] for point in zoomed.value.json()["series"]["loss"]]
        assert 14 <= steps[0] <= 16
        assert 29 <= steps[-1] <= 31
        expect(page.get_by_label(found.say("chart.from"))).to_have_value(str(steps[0]))
        with page.expect_response(lambda reply: SHOWN in reply.url and "first_step=" not in reply.url):
            page.locator("figure").first.locator(".u-over").dblclick(position={"x": 30, "y": 30})


def test_curves_answer_the_keyboard_and_are_overlaid(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        page = found.open("jobs")
        for state in ("succeeded", "failed"):
            page.get_by_role("checkbox", name=f"{found.say('jobs.choose_one')} تجربة {state}").check()
        page.get_by_text(found.say("jobs.overlay", n=2)).click()
        expect(page.locator("figure").first.locator(".u-legend")).to_contain_text("تجربة failed · loss")
        first = page.get_by_label(found.say("chart.from"))
        first.focus()
        page.keyboard.type("10")
        page.keyboard.press("Tab")
        page.keyboard.type("20")
        with page.expect_response(lambda reply: SHOWN in reply.url and "first_step=10" in reply.url):
            page.keyboard.press("Enter")
        expect(found.button("chart.all")).to_be_enabled()
        found.button("chart.all").press("Enter")
        expect(found.button("chart.all")).to_be_disabled()
        page.get_by_text(found.say("chart.table")).first.click()
        expect(page.locator("figure table caption").first).to_contain_text("succeeded · loss")
        page = found.open(f"jobs/{seeded.jobs['succeeded']}")
        page.get_by_label(found.say("overlay.add")).select_option(seeded.jobs["failed"])
        expect(page.locator("figure").first.locator(".u-legend")).to_contain_text("تجربة failed · loss")
        page.get_by_role("button", name=f"{found.say('overlay.remove')} تجربة failed").click()
        expect(page.locator("figure").first.locator(".u-legend")).not_to_contain_text("failed")


def test_all_can_be_reached_by_keyboard(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        page = found.open("jobs")
        page.keyboard.press("Tab")
        expect(page.locator(":focus")).to_have_text(found.say("skip"))
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_be_focused()
        wanted = set(
            page.locator("main :is(a, button, input, select):not([disabled])").evaluate_all(
                "(all) => all.map((each) => each.outerHTML)"
            )
        )
        reached = set()
        for _ in range(len(wanted) + 5):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.outerHTML"))
        assert wanted <= reached


def test_actions_ask_and_say_what_they_did(browser: Browser, empty: Seeded) -> None:
    with screen(browser, empty.live.url, "en") as found:
        job_id = empty.submit("acted on")
        page = found.open(f"jobs/{job_id}")
        found.button("job.pause").click()
        expect(page.locator(".head .state")).to_contain_text("Paused")
        found.button("job.resume").click()
        expect(page.locator(".head .state")).to_contain_text("Queued")
        found.button("job.cancel").click()
        expect(page.locator("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
        found.button("job.cancel").click()
        page.locator("dialog").get_by_role("button", name=found.say("job.cancel")).click()
        expect(page.locator(".head .state")).to_contain_text("Cancelled")
        found.button("job.rerun").click()
        expect(page.locator(".head .state")).to_contain_text("Queued")
        assert job_id not in page.url
        page.goto(f"{empty.live.url}/#/jobs/{job_id}")
        found.button("job.delete").click()
        page.locator("dialog").get_by_role("button", name=found.say("job.delete")).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(found.say("jobs.title"))
        assert httpx.get(f"{empty.live.url}/v1/jobs/{job_id}").status_code == 404


def test_an_action_that_comes_too_late_says_so(browser: Browser, empty: Seeded) -> None:
    with screen(browser, empty.live.url, "en") as found:
        job_id = empty.submit("late")
        page = found.open(f"jobs/{job_id}")
        found.button("job.cancel").click()
        httpx.post(f"{empty.live.url}/v1/jobs/{job_id}/cancel").raise_for_status()
        page.locator("dialog").get_by_role("button", name=found.say("job.cancel")).click()
        expect(page.locator("dialog .box.error")).to_contain_text(f"job {job_id} is already cancelled")


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_check_is_cancelled_while_it_waits(browser: Browser, empty: Seeded, language: str) -> None:
    with screen(browser, empty.live.url, language) as found:
        page = found.open("new")
        found.button("new.sample").click()
        with page.expect_response(lambda reply: "/v1/jobs/validate" in reply.url) as asked:
            found.button("new.check").click()
        found.button("task.cancel").click()
        expect(page.locator(".report .box.error")).to_be_visible()
        assert found.untranslated() == []
        task = httpx.get(f"{empty.live.url}/v1/tasks/{asked.value.json()['id']}").json()
        assert (task["state"], task["error"]["code"]) == ("cancelled", "cancelled")
        expect(found.button("new.check")).to_be_enabled()


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_job_that_is_out_of_hours_resumes_with_more(browser: Browser, empty: Seeded, language: str) -> None:
    job_id = empty.submit("long", max_hours=1.5, priority=100)
    fence = empty.claim(job_id)
    with empty.live.database.transaction() as session:
        jobs.request(session, job_id, Request.PAUSE, because=PauseReason.TIME_LIMIT)
    empty.finish(fence, Cause.PAUSE)
    with screen(browser, empty.live.url, language) as found:
        page = found.open(f"jobs/{job_id}")
        hours = page.get_by_label(found.say("job.max_hours"))
        expect(hours).to_have_value("3")
        hours.fill("4")
        found.button("job.resume").click()
        expect(page.locator(".head .state")).to_contain_text(found.say("state.queued"))
    assert httpx.get(f"{empty.live.url}/v1/jobs/{job_id}").json()["spec"]["max_hours"] == 4


def test_a_dataset_is_uploaded_looked_at_and_deleted(browser: Browser, empty: Seeded) -> None:
    with screen(browser, empty.live.url, "en") as found:
        page = found.open("datasets")
        rows = [{"prompt": f"سؤال {i}", "completion": "جواب", "label": i % 3 > 0} for i in range(45)]
        broken = {
            "name": "rows.jsonl",
            "mimeType": "application/x-ndjson",
            "buffer": b'{"prompt": "a", "completion": "b", "label": "maybe"}\n',
        }
        page.get_by_label(found.say("datasets.upload")).set_input_files(broken)
        expect(page.locator(".box.error")).to_contain_text("line 1")
        found.button("cancel").click()
        good = {**broken, "buffer": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()}
        page.get_by_label(found.say("datasets.upload")).set_input_files(good)
        expect(page.locator(".balance")).to_contain_text("67% desirable")
        expect(page.locator("article.row")).to_have_count(20)
        found.button("rows.later").click()
        found.button("rows.later").click()
        expect(page.locator("article.row")).to_have_count(5)
        expect(page.locator("article.row").last).to_contain_text("سؤال 44")
        expect(found.button("rows.later")).to_be_disabled()
        found.button("dataset.delete").click()
        page.locator("dialog").get_by_role("button", name=found.say("dataset.delete")).click()
        page.get_by_text(found.say("datasets.none")).wait_for()


def test_a_service_that_is_away_is_told_and_found_again(browser: Browser, empty: Seeded) -> None:
    with screen(browser, empty.live.url, "ar") as found:
        page = found.open("jobs")
        page.context.set_offline(True)
        page.get_by_text(found.say("error.unreachable")).wait_for()
        assert found.untranslated() == []
        page.context.set_offline(False)
        empty.submit("back again")
        page.get_by_role("link", name="back again").wait_for()
        expect(page.locator(".box.error")).to_have_count(0)


def test_language_and_colours_are_kept(browser: Browser, empty: Seeded) -> None:
    with screen(browser, empty.live.url, "en") as found:
        page = found.open("jobs")
        page.get_by_label(found.say("theme.label")).select_option("dark")
        expect(page.locator("body")).to_have_css("background-color", DARK)
        page.get_by_role("button", name="العربية").click()
        expect(page.locator("html")).to_have_attribute("dir", "rtl")
        page.reload()
        expect(page.locator("html")).to_have_attribute("lang", "ar")
        expect(page.locator("body")).to_have_css("background-color", DARK)


def test_screens_stay_small_however_much_there_is(browser: Browser, empty: Seeded) -> None:
    """10,000 jobs and a run of 100,000 points: what is asked and drawn is what a screen can show."""
    empty.long_run(steps=10_000, curves=10)
    empty.copies(9_999)
    with screen(browser, empty.live.url, "en") as found:
        page = found.open("jobs")
        expect(page.locator("tbody tr")).to_have_count(50)
        found.button("jobs.older").click()
        expect(page.locator("tbody tr").first).to_contain_text("job 9949")
        page.get_by_label(found.say("jobs.state")).select_option("running")
        page.get_by_role("link", name="long run").click()
        with page.expect_response(lambda reply: SHOWN in reply.url) as answered:
            page.reload()
        series = answered.value.json()["series"]
        assert len(series) == 10
        assert max(map(len, series.values())) <= 600
        expect(page.locator("figure").first).to_be_visible()
