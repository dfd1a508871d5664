"""A headless Chromium, and what tests ask of a page: its words, its accessibility, what it complained of."""

import json
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as TookTooLong

from tests.servers import absent
from tests.wording import LATIN
from trainer_core.wording import Language, catalogue

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "api" / "dashboard" / "static" / "locales"
SCREENSHOTS = Path(os.environ.get("TAFDIL_TEST_SCREENSHOTS", ROOT / "build" / "screenshots"))
# The first has no windows to draw, so it takes less CPU time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing but the page itself may use the network; a container has neither a sandbox nor a GPU.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_LOOKS = 600
# How long a page may take for what must happen but has no set time: the machine may be busy with other work.
PATIENCE_MS = 120_000
# `expect` has a limit of its own, five seconds unless it is set.
expect.set_options(timeout=PATIENCE_MS)
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
# Letters of the other language outside what is meant to stay as it is: data, names of fields, dates.
_FOREIGN = """
([letters, allowed]) => {
  const foreign = { test: (text) => new RegExp(letters, "u").test(text.replace(new RegExp(allowed, "g"), "")) };
  const kept = "[translate=no], time, script, style, noscript, .number";
  const found = [];
  const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { parentElement: parent, data } = walker.currentNode;
    if (foreign.test(data) && !parent.closest(kept)) found.push(data.trim());
  }
  for (const element of document.querySelectorAll("[aria-label], [title], [placeholder], [alt]")) {
    if (element.closest("[translate=no], time")) continue;
    for (const name of ["aria-label", "title", "placeholder", "alt"]) {
      const text = element.getAttribute(name);
      if (text && foreign.test(text)) found.push(`${name}: ${text}`);
    }
  }
  return found;
}
"""
# Violations only: describing everything that passes takes longer than finding what does not.
_VIOLATIONS = """
async (runOnly) => {
  const { violations } = await axe.run({ runOnly, resultTypes: ["violations"] });
  return violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(({ html }) => html.slice(0, 200)).join(" ")}`);
}
"""
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_LETTERS_OF_THE_OTHER = {"ar": "\\p{Script=Latin}", "en": "\\p{Script=Arabic}"}


@contextmanager
def chromium() -> Generator[Browser]:
    """The browser of this machine. Where there is none the test is skipped, but for continuous integration."""
    path = os.environ.get("TAFDIL_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        absent("Chromium", FileNotFoundError("none of " + ", ".join(NAMES) + " is there"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Screen:
    """A page of the dashboard in one language.

    Attributes:
        complaints: what the console, scripts and the content security policy said; none in a good run.
        dialogs: what a script that should not run would open.
    """

    def __init__(self, context: BrowserContext, url: str, language: str) -> None:
        self.url, self.language = url, language
        own = json.loads((LOCALES / f"{language}.json").read_text(encoding="utf-8"))
        self.words: dict[str, Any] = catalogue(cast("Language", language)) | own
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self._unanswered: list[str] = []
        self.page.on("request", lambda request: self._unanswered.append(request.url))
        self.page.on("requestfinished", lambda request: self._unanswered.remove(request.url))
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))

    def _on_console(self, message: Any) -> None:
        # Chromium logs every reply that is an error; the page shows it.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def say(self, key: str, **values: Any) -> str:
        """The interface's words."""
        text = self.words[key]
        return re.sub(r"\{(\w+)\}", lambda found: str(values[found[1]]), text if isinstance(text, str) else text["other"])

    def open(self, place: str = "") -> Page:
        """Goes to a place of the dashboard, e.g. `jobs/…`, and waits until it is drawn."""
        self.page.goto(f"{self.url}/#/{place}")
        self.settle()
        return self.page

    def settle(self) -> None:
        try:
            self.page.locator("h1").wait_for()
        except TookTooLong as error:
            error.add_note(f"the page says {self.page.locator('body').inner_text()!r}")
            error.add_note(f"complaints: {self.complaints}; requests that failed or were not answered: {self._unanswered}")
            raise
        expect(self.page.locator(".busy")).to_have_count(0)

    def unfold(self) -> None:
        """Opens every part of the page that is folded away."""
        closed = self.page.locator("details:not([open]) > summary")
        while closed.count():
            closed.first.click()
        self.settle()

    def button(self, key: str, **values: Any) -> Locator:
        return self.page.get_by_role("button", name=self.say(key, **values), exact=True)

    def untranslated(self) -> list[str]:
        """Texts in the letters of the other language that are no data."""
        # The empty expression allows nothing.
        allowed = LATIN.pattern if self.language == "ar" else ""
        return self.page.evaluate(_FOREIGN, [_LETTERS_OF_THE_OTHER[self.language], allowed])

    def barriers(self) -> list[str]:
        """What axe finds that keeps people from using the page, each with the elements it is about."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE_SCRIPT)
        return self.page.evaluate(_VIOLATIONS, _RULES)

    def is_too_wide(self) -> bool:
        """Whether a person has to scroll sideways, also after charts have taken the width that there is."""
        for _ in range(_LOOKS):
            if not self.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                return False
            self.page.wait_for_timeout(100)
        return True

    def keep(self, name: str) -> None:
        """Keeps a screenshot for people."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.{self.language}.png", full_page=True)


@contextmanager
def screen(browser: Browser, url: str, language: str, **options: Any) -> Generator[Screen]:
    """A page in a browser profile of its own, which must have complained of nothing at the end."""
    context = browser.new_context(**{"locale": language, "viewport": DESKTOP, "reduced_motion": "reduce", **options})
    try:
        found = Screen(context, url, language)
        yield found
        assert found.complaints == []
        assert found.dialogs == []
    finally:
        context.close()


# Closed after each file: Playwright's loop counts as running in its thread, and no test could run one of its own beside it.
@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    with chromium() as found:
        yield found
