"""The report on a dataset's page: sentences, intervals and figures, in both languages, at the widths of three screens."""

import json
from collections.abc import Generator

import httpx
import pytest
from playwright.sync_api import Browser, expect
from pydantic import SecretStr

from benchmarks.planted_files import PLANTED, rows_of
from jobs.repository import tasks
from jobs.settings import Settings
from jobs.states import TaskKind
from tests.browser.chromium import DESKTOP, browser, screen
from tests.conftest import TINY_MODEL
from tests.live import serving
from trainer_core.data_report import report_of_rows, vocabulary_in

__all__ = ["browser"]

MODEL = "tafdil/tiny-arabic-qwen-2"
WIDTHS = {"phone": 360, "tablet": 768, "desktop": DESKTOP["width"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, str]]:
    """The service, and a dataset of it that has two reports: one of them with a model's tokens."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    file = next(each for each in PLANTED if each.kind == "length" and each.shape == "pairs")
    rows = rows_of(file, 300)
    with serving(settings) as live:
        body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        dataset = httpx.post(f"{live.url}/v1/datasets", content=body.encode()).json()["id"]
        for model, vocabulary in (("", None), (MODEL, vocabulary_in(TINY_MODEL, MODEL, max_length=40))):
            asked = {"wait_s": 0, "model": model} if model else {"wait_s": 0}
            assert httpx.get(f"{live.url}/v1/datasets/{dataset}/report", params=asked).status_code == 202
            with live.database.transaction() as session:
                task = tasks.claim_next(session, [TaskKind.REPORT], 3600)
                assert task
                tasks.finish(session, task, json.loads(json.dumps(report_of_rows(rows, vocabulary))))
        yield live.url, f"datasets/{dataset}"


@pytest.mark.parametrize("language", ["en", "ar"])
def test_the_report_is_words_a_picture_and_figures(browser: Browser, place: tuple[str, str], language: str) -> None:
    url, dataset = place
    with screen(browser, url, language) as found:
        page = found.open(dataset)
        named = page.locator(".box.warning").first
        expect(named).to_contain_text(found.say("trait.characters"))
        expect(named).to_contain_text(found.say("advice.length"))
        rows = page.locator(".intervals tbody tr")
        expect(rows).to_have_count(12)
        expect(rows.first).to_have_class("named")
        # The dot of a rule that is nearly always right is at the end of the line: on the left in Arabic.
        svg, dot = (rows.first.locator(each).bounding_box() for each in ("svg", "circle"))
        assert svg
        assert dot
        assert (dot["x"] - svg["x"] > svg["width"] / 2) == (language == "en")
        page.locator("#r-model").fill("Qwen/None")
        found.button("report.count").click()
        expect(page.locator(".box.error")).to_contain_text("Qwen/None")
        page.locator("#r-model").fill(MODEL)
        found.button("report.count").click()
        tokens = page.get_by_role("table", name=found.say("report.tokens"), exact=True)
        expect(tokens.get_by_role("row")).to_have_count(10)
        assert float(tokens.get_by_role("cell").nth(1).inner_text().replace("٫", ".")) > 1
        found.unfold()
        for name, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            assert not found.is_too_wide(), name
            found.keep(f"dataset-report.{name}")
        assert found.untranslated() == []
        assert found.barriers() == []
        page.emulate_media(color_scheme="dark")
        assert found.barriers() == []
