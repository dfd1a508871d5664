"""A newcomer in the browser alone: from an empty service to a compared model, on the real stack."""

import json
import re
from collections.abc import Generator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import Screen, browser, screen
from tests.conftest import DATA
from tests.stack import StackUnderTest
from tests.workbooks import xlsx

__all__ = ["browser"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[StackUnderTest]:
    with StackUnderTest(tmp_path_factory.mktemp("stack") / "data") as found:
        yield found


# Each press of a mouse button or a finger, wherever it lands.
COUNT_PRESSES = "window.presses = 0; addEventListener('pointerdown', () => (window.presses += 1), true)"
MOST_PRESSES = 10


def sheet(path: Path) -> Path:
    """An Excel sheet of 200 pairs under Arabic headings."""
    rows = [json.loads(line) for line in (DATA / "pairs_train.jsonl").read_text(encoding="utf-8").splitlines()[:200]]
    cells = [[row["prompt"], row["chosen"], row["rejected"]] for row in rows]
    path.write_bytes(xlsx({"أزواج": [["السؤال", "الإجابة الأفضل", "الإجابة الأسوأ"], *cells]}))
    return path


def test_a_newcomer_trains_and_compares_in_the_browser_alone(
    browser: Browser, stack: StackUnderTest, tmp_path: Path
) -> None:
    with screen(browser, stack.url, "ar") as found:
        found.page.add_init_script(COUNT_PRESSES)
        say, page = found.say, found.open()
        page.get_by_role("link", name=say("new.title")).first.click()
        expect(page.get_by_role("radio", name=say("recipe.try"))).to_be_checked()
        page.get_by_role("radio", name="IPO").check()
        page.locator("#f-name").fill("تجربتي الأولى")
        with page.expect_file_chooser() as chooser:
            page.get_by_text(say("datasets.upload"), exact=True).click()
        chooser.value.set_files(sheet(tmp_path / "azwaj.xlsx"))
        found.button("mapper.upload").click()
        expect(page.locator("#f-data")).to_have_value(re.compile("^id:[0-9a-f]{32}$"))
        page.locator("details.more > summary").click()
        page.locator("#f-sample_prompts").fill("ما عاصمة مصر؟")
        found.button("new.check").click()
        start = found.button("new.submit")
        # The checks worker loads its libraries first.
        start.wait_for(timeout=300_000)
        found.keep("walk-dry-run")
        presses = page.evaluate("window.presses")
        found.unfold()
        page.evaluate("presses => (window.presses = presses)", presses)  # nobody has to open everything
        expect(page.locator(".tokens .trained").first).to_be_visible()
        expect(page.locator(".report .facts").first).to_contain_text("60")
        expect(page.locator(".report [data-effect=changed]")).to_be_visible()
        assert found.untranslated() == []
        assert found.barriers() == []

        start.click()
        expect(page.locator(".head .state")).to_contain_text(say("state.running"))
        expect(page.locator(".head .state")).to_contain_text(say("state.succeeded"), timeout=300_000)
        expect(page.locator("h2 .effect.changed")).to_be_visible()
        assert page.evaluate("window.presses") <= MOST_PRESSES
        page.locator("figure .u-over").first.wait_for()
        found.keep("walk-job")
        page.get_by_role("link", name=say("part.samples"), exact=True).click()
        expect(page.locator("article.row")).to_have_count(3)
        found.keep("walk-samples")
        page.get_by_role("link", name=say("part.files"), exact=True).click()
        with page.expect_download() as download:
            page.get_by_role("link", name="adapter_model.safetensors").first.click()
        assert download.value.path().stat().st_size > 1000
        found.button("files.merge").click()
        page.get_by_text(say("files.merged")).wait_for()
        compares_and_looks_at_the_rows(found)


def compares_and_looks_at_the_rows(found: Screen) -> None:
    """From the page of a job that succeeded."""
    say, page = found.say, found.page
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
    page.get_by_role("link", name="azwaj.xlsx").first.click()
    found.button("dataset.preview_ask").click()
    page.locator(".tokens .trained").first.wait_for()
    assert found.untranslated() == found.barriers() == []
