"""Every page, in English and Arabic: translated, accessible, within the width of a phone, and kept as a picture."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from jobs.repository import jobs
from tests.browser.chromium import PHONE, Screen, screen
from tests.browser.seed import PART, Seeded
from tests.training import config
from trainer_core.dry_run import dry_run

LANGUAGES = ["en", "ar"]
PARTS = ("curves", "samples", "events", "logs", "attempts", "data", "metadata", "files")
PLACES = {
    "jobs": "jobs",
    "no-jobs": "jobs?state=queued&method=cpo",
    **{f"job-{part}": f"jobs/{{succeeded}}/{part}" for part in PARTS},
    **{f"job-{state}": f"jobs/{{{state}}}" for state in ("failed", "paused", "cancelled", "running", "queued")},
    "nothing-yet": "jobs/{queued}/samples",
    "overlay": "curves/{succeeded},{failed}",
    "new": "new",
    "clone": "new?from={failed}",
    "datasets": "datasets",
    "dataset": "datasets/{dataset}",
    "compare": "jobs/{succeeded}/compare",
    "no-such-job": f"jobs/{'0' * 32}",
    "no-such-page": "nowhere",
}


def place_of(name: str, seeded: Seeded) -> str:
    return PLACES[name].format(**seeded.jobs, dataset=seeded.dataset)


def opened(found: Screen, name: str, seeded: Seeded) -> None:
    found.open(place_of(name, seeded))
    if name == "compare":
        found.page.locator(".history button").first.click()
        found.page.locator(".sides").wait_for()
    found.keep(name)
    found.unfold()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", PLACES)
def test_a_page_is_translated_and_accessible(browser: Browser, seeded: Seeded, name: str, language: str) -> None:
    with screen(browser, seeded.live.url, language) as found:
        opened(found, name, seeded)
        assert found.untranslated() == []
        assert found.barriers() == []
        page = found.page
        expect(page.locator("html")).to_have_attribute("dir", "rtl" if language == "ar" else "ltr")
        page.set_viewport_size(PHONE)
        assert not found.is_too_wide()
        page.emulate_media(color_scheme="dark")
        assert found.barriers() == []
        found.keep(f"{name}.phone")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_refused_form_says_which_field_and_why(browser: Browser, seeded: Seeded, language: str) -> None:
    with screen(browser, seeded.live.url, language) as found:
        page = found.open("new")
        found.button("new.sample").click()
        page.locator("#f-beta").fill("-1")
        page.locator("#f-model").fill("Qwen/None")
        found.button("new.check").click()
        page.locator("#f-beta[aria-invalid=true]").wait_for()
        expect(page.locator("#f-beta-error")).to_contain_text(found.say("value.greater_than", bound="0"))
        found.keep("refused")
        assert found.untranslated() == []
        assert found.barriers() == []
        page.locator("#f-beta").fill("0.5")
        found.button("new.check").click()
        page.get_by_text("Qwen/None").last.wait_for()
        found.unfold()
        page.locator("#f-chat_template_kwargs").fill("{not json")
        found.button("new.check").click()
        wrong = page.locator("#f-chat_template_kwargs[aria-invalid=true]")
        wrong.wait_for()
        expect(wrong).to_be_focused()
        expect(page.locator("#f-chat_template_kwargs-error")).to_contain_text(found.say("new.not_json", problem=""))


def test_a_comparison_takes_arabic_digits_and_names_what_is_no_number(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open(f"jobs/{seeded.jobs['succeeded']}/compare")
        page.locator("#c-prompt").fill("ما عاصمة مصر؟")
        for name, text in (("length", "٢٤"), ("temperature", "٠٫٥"), ("seed", "سبعة")):
            page.locator(f"#c-{name}").fill(text)
        with page.expect_request("**/compare?*") as request:
            found.button("compare.ask").click()
        assert request.value.post_data_json == {
            "prompt": "ما عاصمة مصر؟",
            "max_length": 24,
            "temperature": 0.5,
            "seed": "سبعة",
        }
        page.locator("#c-seed[aria-invalid=true]").wait_for()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_dry_run_forecasts_the_effect(browser: Browser, seeded: Seeded, language: str, tmp_path: Path) -> None:
    said = dry_run(config("kto", tmp_path, learning_rate=1e-6))
    with screen(browser, seeded.live.url, language) as found, ThreadPoolExecutor() as pool:
        page = found.open("new")
        found.button("new.sample").click()
        answered = pool.submit(seeded.answer_dry_run, said)
        found.button("new.check").click()
        page.locator("[data-effect=hardly_changed]").wait_for()
        answered.result()
        page.locator(".box.warning").get_by_text(found.words["hardly_changes"].split(":")[0]).wait_for()
        expect(page.get_by_role("heading", name=found.say("report.title"))).to_be_visible()
        expect(page.get_by_role("table", name=found.say("report.tokens"), exact=True).get_by_role("row")).to_have_count(4)
        found.keep("dry-run")
        assert found.untranslated() == []
        assert found.barriers() == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_mix_is_shown(browser: Browser, seeded: Seeded, language: str) -> None:
    """What the spec asks of each dataset, what each gives, and rows by dataset and line."""
    datasets = [{"dataset_id": seeded.dataset, "weight": 3}, {"dataset_path": "samples/pairs_train.jsonl", "weight": 0.5}]
    job = seeded.submit("خليط", "kto", dataset_path=None, datasets=datasets, priority=100)
    gives = {"rows_in_file": 1234, "rows_taken": 987, "rows_trained_on": 986}
    report = {
        "train": {**PART, "first_rows_cut": ["رسمي:3", "samples/pairs_train.jsonl:7"]},
        "rows_trained_on": 1,
        "rows_validated_on": 0,
        "rows_held_back": 0,
        "rows_left_over": 0,
        "datasets": [{"name": "رسمي", **gives}],
    }
    fence = seeded.claim(job)
    with seeded.live.database.transaction() as session:
        jobs.record(session, fence, "data", {"report": report})
    with screen(browser, seeded.live.url, language) as found:
        page = found.open(f"jobs/{job}/data")
        page.get_by_text(found.say("mix.weight", weight="0.5")).wait_for()
        page.locator(f'.head a[href="#/datasets/{seeded.dataset}"]').wait_for()
        for text in ("1,234", "987", "samples/pairs_train.jsonl:7"):
            page.get_by_text(text, exact=True).wait_for()
        found.keep("job-mix")
        assert found.untranslated() == []
        assert found.barriers() == []
        page.set_viewport_size(PHONE)
        assert not found.is_too_wide()


@pytest.mark.parametrize("language", LANGUAGES)
def test_signing_in(browser: Browser, language: str, keyed: tuple[str, str]) -> None:
    url, key = keyed
    with screen(browser, url, language) as found:
        page = found.open("jobs")
        found.keep("sign-in")
        assert found.untranslated() == []
        assert found.barriers() == []
        page.get_by_label(found.say("sign_in.key")).fill("tafdil_of-nobody")
        page.keyboard.press("Enter")
        page.get_by_text(found.say("error.unauthorized")).wait_for()
        page.get_by_label(found.say("sign_in.key")).fill(key)
        page.keyboard.press("Enter")
        page.get_by_text(found.say("jobs.none")).wait_for()
        assert found.untranslated() == []
        assert key not in page.content()
        assert page.evaluate("document.cookie + JSON.stringify(localStorage)").find(key) == -1
        found.button("session.out").click()
        page.get_by_label(found.say("sign_in.key")).wait_for()


@pytest.mark.parametrize("part", ["charts.js", "wording/en.json"])
def test_a_page_whose_part_is_dropped_once_reloads(browser: Browser, seeded: Seeded, part: str) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        found.page.route(f"**/{part}", lambda route: route.abort("connectionreset"), times=1)
        found.open("jobs")
        expect(found.page.locator("h1")).to_have_text(found.say("jobs.title"))
        found.complaints.clear()


@pytest.mark.parametrize("part", ["charts.js", "wording/en.json"])
def test_a_page_that_cannot_be_loaded_says_so_and_offers_to_reload(browser: Browser, seeded: Seeded, part: str) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        page = found.page
        page.route(f"**/{part}", lambda route: route.abort())
        page.goto(seeded.live.url)
        page.get_by_text("The page could not be loaded.").wait_for()
        assert not found.is_too_wide()
        page.unroute(f"**/{part}")
        page.get_by_role("button").click()
        found.settle()
        expect(page.locator("h1")).to_have_text(found.say("jobs.title"))
        # What a page logs about a part that was cut off is meant.
        found.complaints.clear()


def test_the_api_reference_needs_nothing_from_elsewhere(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        asked: list[str] = []
        found.page.on("request", lambda request: asked.append(request.url))
        found.page.goto(f"{seeded.live.url}/docs")
        found.page.locator(".opblock").first.wait_for()
        assert [url for url in asked if not url.startswith((seeded.live.url, "data:"))] == []


@pytest.fixture
def keyed(tmp_path: Any) -> Any:
    """The URL of a service with keys, and a key."""
    from pydantic import SecretStr

    from jobs.settings import Settings
    from tests.live import serving

    admin = "an-admin-key-of-more-than-32-letters"
    settings = Settings(data_dir=tmp_path, redis_url=SecretStr("redis://127.0.0.1:1/0"), admin_key=SecretStr(admin))
    settings.make_directories()
    with serving(settings) as live:
        headers = {"Authorization": f"Bearer {admin}"}
        made = httpx.post(f"{live.url}/v1/keys", json={"tenant": "lab", "scopes": ["read", "write"]}, headers=headers)
        yield live.url, made.json()["key"]
