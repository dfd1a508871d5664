"""A newcomer in the browser alone: from an empty service to a compared model, on the real stack."""

import re
from collections.abc import Generator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import browser, screen
from tests.conftest import DATA
from tests.stack import StackUnderTest

__all__ = ["browser"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[StackUnderTest]:
    with StackUnderTest(tmp_path_factory.mktemp("stack") / "data") as found:
        yield found


def test_a_newcomer_trains_and_compares_in_the_browser_alone(browser: Browser, stack: StackUnderTest) -> None:
    with screen(browser, stack.url, "ar") as found:
        say, page = found.say, found.open()
        page.get_by_role("link", name=say("new.title")).first.click()
        page.get_by_role("radio", name="IPO").check()
        found.button("new.sample").click()
        page.locator("#f-name").fill("تجربتي الأولى")
        page.get_by_label(say("datasets.upload")).set_input_files(DATA / "pairs_train.jsonl")
        expect(page.locator("#f-data")).to_have_value(re.compile("^id:[0-9a-f]{32}$"))
        page.locator("details.more > summary").click()
        page.locator("#f-sample_prompts").fill("ما عاصمة مصر؟")
        found.button("new.check").click()
        start = found.button("new.submit")
        start.wait_for()
        found.keep("walk-dry-run")
        found.unfold()
        expect(page.locator(".tokens .trained").first).to_be_visible()
        expect(page.locator(".report .facts").first).to_contain_text("60")
        assert found.untranslated() == []
        assert found.barriers() == []

        start.click()
        expect(page.locator(".head .state")).to_contain_text(say("state.running"))
        expect(page.locator(".head .state")).to_contain_text(say("state.succeeded"), timeout=300_000)
        page.locator("figure .u-over").first.wait_for()
        found.keep("walk-job")
        page.get_by_role("link", name=say("part.samples"), exact=True).click()
        expect(page.locator("article.row")).to_have_count(4)
        found.keep("walk-samples")
        page.get_by_role("link", name=say("part.files"), exact=True).click()
        with page.expect_download() as download:
            page.get_by_role("link", name="adapter_model.safetensors").first.click()
        assert download.value.path().stat().st_size > 1000
        found.button("files.merge").click()
        page.get_by_text(say("files.merged")).wait_for()

        page.get_by_role("link", name=say("compare.title"), exact=True).click()
        page.get_by_label(say("compare.prompt")).fill("هل تعرف اسم عاصمة المغرب؟")
        found.button("compare.ask").click()
        page.get_by_text(say("compare.proof")).wait_for()
        reference, trained = page.locator(".sides .block").all_text_contents()
        assert "الرباط" in trained
        assert trained != reference
        expect(page.locator(".sides ins").first).to_be_visible()
        expect(page.locator(".history li")).to_have_count(1)
        found.keep("walk-compare")
        assert found.untranslated() == []
        assert found.barriers() == []

        page.get_by_role("link", name=say("datasets.title"), exact=True).click()
        page.get_by_role("link", name="pairs_train.jsonl").first.click()
        found.button("dataset.preview_ask").click()
        page.locator(".tokens .trained").first.wait_for()
        assert found.untranslated() == found.barriers() == []
