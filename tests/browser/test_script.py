"""Letters and digits: the same on every machine and in every browser's language."""

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import screen
from tests.browser.seed import Seeded

# What a canvas is asked to write is kept, as nothing of it is in the page's text.
_KEEP_WRITING = """
  window.written = [];
  const fillText = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    window.written.push(String(text));
    return fillText.call(this, text, ...rest);
  };
"""
_EASTERN = re.compile(r"[\u0660-\u0669\u06f0-\u06f9]")


@pytest.mark.parametrize("language", ["en", "ar"])
@pytest.mark.parametrize("locale", ["ar-EG", "ar-SA", "fa-IR"])
def test_no_digits_follow_the_browsers_language(browser: Browser, seeded: Seeded, locale: str, language: str) -> None:
    """The browser would write ١٢٣; pages, charts and times write 123."""
    with screen(browser, seeded.live.url, language, locale=locale) as found:
        page = found.page
        page.add_init_script(f"localStorage.setItem('language', '{language}')")
        page.add_init_script(_KEEP_WRITING)
        found.open(f"jobs/{seeded.jobs['succeeded']}/curves")
        page.locator(".u-over").first.hover()
        found.unfold()
        assert page.evaluate("new Intl.NumberFormat(undefined).format(7)") in "٧۷"
        written = page.evaluate("window.written")
        assert any(re.search(r"\d", text) for text in written)
        assert [text for text in written if _EASTERN.search(text)] == []
        assert page.locator(".u-legend .u-value").first.text_content()
        for place in ("jobs", f"jobs/{seeded.jobs['succeeded']}/events", "datasets"):
            assert not _EASTERN.search(page.locator("body").inner_text())
            found.open(place)
        assert not _EASTERN.search(page.locator("body").inner_text())


def test_times_are_on_a_clock_of_24_hours_with_the_zone_beside_them(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "ar", timezone_id="Asia/Riyadh") as found:
        page = found.open(f"jobs/{seeded.jobs['succeeded']}/events")
        time = page.locator("td time").first
        expect(time).to_have_text(re.compile(r"\b\d\d:\d\d:\d\d$"))
        expect(time).to_have_attribute("title", re.compile(r"غرينتش|\+3"))
        expect(page.locator("dd time").first).to_have_text(re.compile(r"\b\d\d:\d\d$"))
        page = found.open("jobs")
        expect(page.locator("td time").first).to_have_text(re.compile("قبل|الآن"))


def test_arabic_is_set_in_the_face_that_ships(browser: Browser, seeded: Seeded) -> None:
    """Only pages with Arabic letters load it, and it comes from this service."""
    with screen(browser, seeded.live.url, "ar") as found:
        with found.page.expect_response("**/vendor/plex-arabic-400.woff2") as loaded:
            found.open("jobs")
        assert loaded.value.status == 200
        assert loaded.value.headers["content-type"] == "font/woff2"
        assert found.page.evaluate("document.fonts.ready.then(() => document.fonts.check('1rem \"Plex Arabic\"', 'تفضيل'))")
        line, size = found.page.evaluate(
            "['lineHeight', 'fontSize'].map((of) => parseFloat(getComputedStyle(document.body)[of]))"
        )
        assert line / size == pytest.approx(1.75)
