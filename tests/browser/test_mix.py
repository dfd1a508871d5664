"""Several datasets in the form of a new job, each with a weight or a number of rows."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect
from pydantic import SecretStr

from jobs.settings import Settings
from tests.browser.chromium import PHONE, browser, screen
from tests.live import Live, serving

__all__ = ["browser"]


@pytest.fixture
def live(tmp_path: Path) -> Generator[Live]:
    settings = Settings(data_dir=tmp_path, redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    with serving(settings) as found:
        yield found


def uploaded(live: Live, name: str) -> str:
    row = {"prompt": name, "chosen": "نعم.", "rejected": "لا."}
    reply = httpx.post(f"{live.url}/v1/datasets", params={"name": name}, content=json.dumps(row, ensure_ascii=False))
    return reply.json()["id"]


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_mix_is_chosen_changed_and_sent(browser: Browser, live: Live, language: str) -> None:
    first, second, third = (uploaded(live, name) for name in ("أول", "ثان", "ثالث"))
    with screen(browser, live.url, language) as found:
        page = found.open("new")
        page.get_by_role("radio", name="IPO").check()
        page.locator("#f-data").select_option(f"id:{first}")
        found.button("new.mix_add").click()
        expect(page.locator("#f-mix-0"), "the dataset that was chosen stays").to_have_value(f"id:{first}")
        page.locator("#f-mix-1").select_option(f"id:{second}")
        found.button("new.mix_add").click()
        page.locator("#f-mix-2").select_option(f"id:{third}")
        for at, weight in ((0, "3"), (1, "1.5")):
            page.locator(f"#f-mix-{at}-measure").select_option("weight")
            page.locator(f"#f-mix-{at}-amount").fill(weight)
        for size in (PHONE, {"width": 1280, "height": 900}):
            page.set_viewport_size(size)  # type: ignore[arg-type]
            assert found.untranslated() == []
            assert found.barriers() == []
            assert not found.is_too_wide()
            found.keep(f"mix-{size['width']}")

        def sent() -> dict[str, Any]:
            with page.expect_request("**/v1/jobs/validate*") as request:
                found.button("new.check").click()
            return json.loads(request.value.post_data or "")

        # A weight on some datasets only: the service says so, and the form shows it.
        spec = sent()
        mix = [{"dataset_id": first, "weight": 3}, {"dataset_id": second, "weight": 1.5}, {"dataset_id": third}]
        assert (spec["datasets"], "dataset_id" in spec) == (mix, False)
        expect(page.locator(".report .box.error")).to_contain_text(
            found.words["mix_weight_missing"].split("{place}")[1].strip()
        )
        page.locator("#f-mix-2-measure").select_option("weight")
        page.locator("#f-mix-2-amount").fill("2")
        found.button("new.mix_remove", n=2).click()
        job = httpx.post(f"{live.url}/v1/jobs", json=sent())
        assert job.status_code == 202, job.text

        # The form of a job that is run again has its mix.
        found.open(f"new?from={job.json()['id']}")
        expect(page.locator("#f-mix-1-amount")).to_have_value("2")
        expect(page.locator("#f-mix-1")).to_have_value(f"id:{third}")
        expect(page.locator("#f-datasets")).to_have_count(0)
        expect(page.locator("#f-mix-2")).to_have_count(0)
        found.button("new.mix_remove", n=2).click()
        expect(page.locator("#f-data")).to_have_value(f"id:{first}")
