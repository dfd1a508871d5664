"""A table of somebody's own becomes a dataset in the browser."""

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from jobs.settings import Settings
from tests.browser.chromium import PHONE, Screen, browser, screen
from tests.live import Live, serving
from tests.workbooks import xlsx

__all__ = ["browser"]

HEADERS = ("رقم", "نص أ", "نص ب", "نص ج")
ROWS = [
    (number, f"ما ناتج {number} + {number}؟", f"الناتج {2 * number}.", f"لا أدري، اسأل غيري {number}.")
    for number in range(1, 13)
]
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
# Where to touch: opening the chooser of files is one more than what is counted here.
_COUNT_CLICKS = "addEventListener('click', () => (window.clicks = (window.clicks ?? 0) + 1), true)"


@pytest.fixture
def live(tmp_path: Path) -> Generator[Live]:
    settings = Settings(data_dir=tmp_path, redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    with serving(settings) as found:
        yield found


def sheet(*rows: Any, headers: tuple[str, ...] = HEADERS) -> dict[str, Any]:
    return {"name": "جدول.xlsx", "mimeType": XLSX, "buffer": xlsx({"ورقة1": [list(row) for row in (headers, *rows)]})}


def bring(found: Screen, file: dict[str, Any]) -> Page:
    page = found.open("datasets")
    page.get_by_label(found.say("datasets.upload")).set_input_files(file)
    return page


def looked_at(found: Screen, name: str) -> None:
    """Translated, accessible and no wider than the screen, on a desk and on a phone."""
    for size in (None, PHONE):
        if size:
            found.page.set_viewport_size(size)
        assert found.untranslated() == []
        assert found.barriers() == []
        assert not found.is_too_wide()
        found.keep(f"{name}.phone" if size else name)
    found.page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_sheet_with_columns_of_any_name_becomes_a_dataset(browser: Browser, live: Live, language: str) -> None:
    with screen(browser, live.url, language) as found:
        page = bring(found, sheet(*ROWS))
        mapper = page.locator(".mapper")
        # Nothing is guessed, so the first cells of each column say what is in it.
        for number, column in enumerate(HEADERS):
            expect(mapper.locator(".cells div").nth(number)).to_have_text(re.compile(f"^\\s*{column}"))
        expect(mapper.locator(".cells div").nth(1).locator("dd")).to_have_text([row[1] for row in ROWS[:3]])
        found.settle()
        looked_at(found, "mapper-open")
        for field, column in (("prompt", "نص أ"), ("chosen", "نص ب"), ("rejected", "نص ج")):
            mapper.locator(f"#m-{field}").select_option(column)
        expect(mapper.locator("article")).to_have_count(10)
        first = mapper.locator("article").first
        expect(first.locator("h5")).to_have_text(
            [
                found.say("role.user"),
                *(f"{found.say('role.assistant')} · {found.say(f'rows.{name}')}" for name in ("chosen", "rejected")),
            ]
        )
        expect(first.locator(".block")).to_have_text(["ما ناتج 1 + 1؟", "الناتج 2.", "لا أدري، اسأل غيري 1."])
        found.settle()
        looked_at(found, "mapper")
        found.button("mapper.upload").click()
        page.wait_for_url("**/#/datasets/*")
        found.settle()
        looked_at(found, "mapped-dataset")
        dataset = httpx.get(f"{live.url}/v1/datasets").json()["datasets"][0]
        assert dataset["mapping"] == {"prompt": "نص أ", "chosen": "نص ب", "rejected": "نص ج"}
        assert (dataset["file_kind"], dataset["train_rows"], dataset["unused"]) == ("xlsx", 12, ["رقم"])

        # The next sheet with these headers needs no choice, in whatever order they stand.
        page = bring(found, sheet(*(row[::-1] for row in ROWS[:3]), headers=HEADERS[::-1]))
        page.get_by_text(found.say("mapper.remembered")).wait_for()
        expect(mapper.locator("article")).to_have_count(3)
        found.button("mapper.upload").click()
        page.wait_for_url("**/#/datasets/*")


def test_a_sheet_with_common_headers_takes_three_clicks(browser: Browser, live: Live) -> None:
    """With the one that opens the chooser, and the one in it."""
    with screen(browser, live.url, "ar") as found:
        page = found.open("datasets")
        page.evaluate(_COUNT_CLICKS)
        file = sheet(*ROWS, headers=("م", "السؤال", "الإجابة الجيدة", "الإجابة السيئة"))
        page.get_by_label(found.say("datasets.upload")).set_input_files(file)
        expect(page.locator(".mapper article")).to_have_count(10)
        found.keep("mapper-guessed")
        found.button("mapper.upload").click()
        page.wait_for_url("**/#/datasets/*")
        assert page.evaluate("window.clicks") == 1
        assert httpx.get(f"{live.url}/v1/datasets").json()["datasets"][0]["kind"] == "pairs"


def test_broken_rows_stay_out_if_a_person_says_so(browser: Browser, live: Live) -> None:
    with screen(browser, live.url, "ar") as found:
        page = bring(found, sheet(*ROWS, (13, "سؤال بلا إجابة", None, None), headers=("م", "prompt", "chosen", "rejected")))
        expect(page.locator(".mapper .box.error")).to_be_visible()
        expect(found.button("mapper.upload")).to_be_disabled()
        page.get_by_label(found.say("mapper.skip")).check()
        expect(page.locator(".mapper .box.error")).to_have_count(0)
        found.settle()
        looked_at(found, "mapper-broken")
        found.button("mapper.upload").click()
        with page.expect_download() as download:
            page.get_by_role("link", name=found.say("dataset.broken")).click()
        assert "سؤال بلا إجابة" in download.value.path().read_text(encoding="utf-8-sig")


def test_a_dropped_file_is_read_and_can_be_given_up(browser: Browser, live: Live) -> None:
    with screen(browser, live.url, "en") as found:
        page = found.open("datasets")
        transfer = page.evaluate_handle(
            """(text) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([text], "rows.csv"));
              return transfer;
            }""",
            "prompt,chosen,rejected\n" + "".join(f"q{n},yes,no\n" for n in range(3)),
        )
        page.locator(".drop").dispatch_event("dragover", {"dataTransfer": transfer})
        expect(page.locator(".drop.over")).to_be_visible()
        page.locator(".drop").dispatch_event("drop", {"dataTransfer": transfer})
        expect(page.locator(".mapper article")).to_have_count(3)
        expect(page.locator("#mapper-title"), "whoever does not see the page is led there").to_be_focused()
        found.button("cancel").click()
        expect(page.get_by_label(found.say("datasets.upload"))).to_be_visible()
        assert httpx.get(f"{live.url}/v1/datasets").json()["datasets"] == []


def test_a_guess_of_every_column_is_read_at_once(browser: Browser, live: Live) -> None:
    """Two columns may be the prompt: it is asked for, and the guess shows ten rows, not those of the question."""
    headers = ("م", "السؤال", "الطلب", "الإجابة الجيدة", "الإجابة السيئة")
    with screen(browser, live.url, "ar") as found:
        page = bring(found, sheet(*((n, q, "اطلب", good, bad) for n, q, good, bad in ROWS), headers=headers))
        expect(page.locator(".mapper article")).to_have_count(10)
        expect(page.locator("#m-prompt")).to_have_value("السؤال")
        page.locator("#m-prompt").select_option("الطلب")
        expect(page.locator(".mapper article .block").first).to_have_text("اطلب")
        expect(page.locator("#m-prompt-hint")).to_have_text("اطلب")


@pytest.mark.parametrize("language", ["en", "ar"])
def test_scores_roles_and_suspicious_words_are_shown_in_both_languages(browser: Browser, live: Live, language: str) -> None:
    headers = ("السؤال", "تعليمات النظام", "الإجابة", "الدرجة")
    rows = [(q, "أجب بإيجاز.", "NULL" if n == 2 else good, n % 5) for n, q, good, _ in ROWS]
    with screen(browser, live.url, language) as found:
        page = bring(found, sheet(*rows, headers=headers))
        expect(page.locator("#m-threshold")).to_have_value("2")
        first = page.locator(".mapper article").first
        judged = f"{found.say('role.assistant')} · {found.say('rows.undesirable')}"
        expect(first.locator("h5")).to_have_text([found.say("role.system"), found.say("role.user"), judged])
        page.locator("#m-threshold").fill("1")
        page.locator("#m-threshold").blur()
        judged = f"{found.say('role.assistant')} · {found.say('rows.desirable')}"
        expect(first.locator("h5").last).to_have_text(judged)
        expect(page.locator(".mapper .box.warning")).to_contain_text("NULL")
        found.settle()
        looked_at(found, "mapper-scores")
        found.button("mapper.upload").click()
        page.wait_for_url("**/#/datasets/*")
        expect(page.locator(".box.warning"), "the dataset keeps it").to_contain_text("NULL")
        # Pairs have no scores, so the threshold is no longer sent.
        page = bring(found, sheet(*rows, headers=("س", *headers[1:])))
        page.locator("#m-prompt").select_option("س")
        page.locator("#m-completion").select_option("الإجابة")
        page.locator("#m-label").select_option("الدرجة")
        expect(page.locator("#m-threshold")).to_have_count(1)
        page.get_by_label(found.say("mapper.pairs")).check()
        expect(page.locator("#m-threshold")).to_have_count(0)
        expect(page.locator(".mapper .box.error")).to_have_count(0)


REFUSED = {
    "a page": ("rows.csv", b"<!doctype html><title>Sign in</title>", "file.html_titled"),
    "a broken cell": ("rows.csv", "prompt,chosen,rejected\nس,أ,ب\nس,أ,ب,ج\n".encode(), "4"),
    "a column twice": ("rows.csv", b"prompt,chosen,rejected,chosen\na,b,c,d\n", "chosen"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_refusal_is_said_in_the_readers_language(browser: Browser, live: Live, language: str, name: str) -> None:
    file, data, told = REFUSED[name]
    with screen(browser, live.url, language) as found:
        page = bring(found, {"name": file, "mimeType": "text/csv", "buffer": data})
        box = page.locator(".box.error")
        expect(box).to_contain_text(found.say(told, title="Sign in") if told in found.words else told)
        found.settle()
        assert found.untranslated() == []
        assert found.barriers() == []
        # Rows can be left out only where rows are wrong.
        expect(page.get_by_label(found.say("mapper.skip"))).to_have_count(1 if name == "a broken cell" else 0)
        found.keep(f"refused-{name.replace(' ', '-')}")
