"""What the service says, as the dashboard shows it in Arabic: every sentence, and each way in which a request fails."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from jobs.repository import jobs, tasks
from jobs.states import Cause, TaskKind
from tests.browser.chromium import PHONE, Screen, screen
from tests.browser.seed import Seeded
from tests.stack import until
from trainer_core.errors import Detail, ModelRefused, error_dict
from trainer_core.wording import Text, catalogue, said, say

HOSTILE = "\u202e<script>alert(1)</script> `{n}` {other} <b>bold</b> Traceback"
ORDINARY = "Qwen/Qwen2.5"
PROBLEM = "RuntimeError: CUDA error: device-side assert triggered at line 1 of a long text"
# Draws each sentence on a line of its own, with the functions that the pages use.
_DRAW = """
async (sentences) => {
  const { html, render } = await import("/assets/vendor/preact-htm.js");
  const { Details, Message, Reason, Warnings } = await import("/assets/wording.js");
  const english = { reason: "UNWORDED", message: "UNWORDED", field: "" };
  const said = ({ code, params }) => ({ ...english, code, message_code: code, params });
  const lines = sentences.map((each) => html`<li data-code=${each.code}><${Reason} of=${said(each)} /></li>`);
  const others = sentences.map((each) => html`<${Message} of=${said(each)} /> `);
  const boxes = html`<${Details} of=${sentences.map(said)} /><${Warnings} found=${sentences.map(said)} />`;
  render(html`<ul id="all">${lines}</ul>${others}${boxes}`, document.querySelector("#app"));
  return Object.fromEntries([...document.querySelectorAll("#all li")].map((line) => [line.dataset.code, line.textContent]));
}
"""


def places(text: Text) -> set[str]:
    forms = [text] if isinstance(text, str) else list(text.values())
    return {name for form in forms for name in re.findall(r"{(\w+)}", form)}


def sentences(value: Any) -> list[dict[str, Any]]:
    """Every code with the same value in each of its places, but for the number that decides about the plural."""
    return [
        {"code": code, "params": {name: 5 if name == "n" else value for name in {"n", *places(text)}}}
        for code, text in catalogue("en").items()
    ]


@pytest.mark.parametrize(
    "value",
    [ORDINARY, HOSTILE, PROBLEM, 1234.5, True, ["train.csv", "تجربة"], {"code": "error.not_found", "params": {}}],
    ids=["name", "hostile", "long", "number", "truth", "list", "sentence"],
)
def test_every_sentence_is_in_arabic_but_for_names(browser: Browser, seeded: Seeded, value: Any) -> None:
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open("jobs")
        drawn = page.evaluate(_DRAW, sentences(value))
        assert set(drawn) == set(catalogue("ar"))
        assert [code for code, text in drawn.items() if not text.strip() or "UNWORDED" in text or "[object" in text] == []
        assert found.untranslated() == []
        # No place is left unfilled, and no value is lost.
        shown = {ORDINARY: ORDINARY, HOSTILE: "Traceback", PROBLEM: PROBLEM}.get(value) if isinstance(value, str) else None
        for code, text in drawn.items():
            if shown and places(catalogue("ar")[code]) - {"n"}:
                assert shown in text, code
            if value != HOSTILE:
                assert "{" not in text, code
                assert "`" not in text, code
        assert "\u202e" not in page.locator("body").inner_text()
        assert page.locator("#app :is(script, b)").count() == 0


def test_the_search_finds_english(browser: Browser, seeded: Seeded) -> None:
    """A sentence without a code, or one that lacks a value, is quoted; bare English would be found."""
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open("jobs")
        page.evaluate(_DRAW, [{"code": "no_such_code", "params": {}}])
        expect(page.locator("q.quotation.apart[lang=en][dir=ltr]").first).to_have_text("UNWORDED")
        assert found.untranslated() == []
        page.evaluate("document.querySelector('#app').append('the model is missing')")
        assert found.untranslated() != []


# -- each way in which a request fails


def shown_in_arabic(found: Screen, name: str) -> None:
    """Keeps the screen in both widths; there is no English on it but names, users' text and quotations."""
    found.settle()
    assert found.untranslated() == []
    found.keep(f"wording-{name}")
    assert found.barriers() == []
    found.page.set_viewport_size(PHONE)
    assert not found.is_too_wide()
    found.keep(f"wording-{name}.phone")


@pytest.mark.parametrize("language", ["ar", "en"])
def test_an_empty_form_marks_each_missing_field_once(browser: Browser, seeded: Seeded, language: str) -> None:
    with screen(browser, seeded.live.url, language) as found:
        page = found.open("new")
        page.locator("#f-model").fill("")
        found.button("new.check").click()
        expect(page.locator("#f-model")).to_be_focused()
        expect(page.locator("[aria-invalid=true]")).to_have_count(2)
        expect(page.locator("#f-model-error")).to_have_text(found.say("new.required"))
        expect(page.locator("#f-data-error")).to_have_text(found.say("new.choose_data"))
        main = page.locator("main").inner_text()
        assert main.count(found.say("new.required")) == main.count(found.say("new.choose_data")) == 1
        expect(page.locator(".report [role=alert] li")).to_have_count(0)
        shown_in_arabic(found, "empty-form")


def test_a_wrong_value_is_said_once_at_its_field(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open("new")
        found.button("new.sample").click()
        page.locator("#f-beta").fill("-1")
        found.button("new.check").click()
        expect(page.locator("#f-beta")).to_be_focused()
        reason = page.locator("#f-beta-error").inner_text()
        assert page.locator("main").inner_text().count(reason) == 1
        shown_in_arabic(found, "wrong-value")


def test_a_half_filled_form_survives_another_language(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        page = found.open("new")
        page.locator("#f-name").fill("تجربتي")
        page.locator("#f-model").fill("")
        found.button("new.check").click()
        expect(page.locator("#f-model-error")).to_have_text(found.say("new.required"))
        with page.expect_request("**/v1/**") as request:
            page.get_by_role("button", name="العربية").click()
            expect(page.locator("#f-model-error")).to_have_text("املأ هذا الحقل.")
            expect(page.locator("#f-name")).to_have_value("تجربتي")
            page.locator("#f-model").fill("tafdil/tiny-arabic-qwen-2")
            page.locator("#f-data").select_option("path:samples/kto_train.jsonl")
            page.locator(".job > button.main").click()
        assert request.value.headers["accept-language"] == "ar"


@pytest.mark.parametrize("place", ["jobs/abc", "jobs/" + "0" * 32, "jobs/abc/compare", "jobs/" + "0" * 32 + "/compare"])
def test_an_unknown_job_leads_back_to_the_list(browser: Browser, seeded: Seeded, place: str) -> None:
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open(place)
        expect(page.locator("main p")).to_contain_text(found.say("missing.job"))
        expect(page.locator("main [role=alert]")).to_have_count(0)
        shown_in_arabic(found, "unknown-job")
        page.locator("main").get_by_role("link", name=found.say("jobs.title")).click()
        page.locator("table").wait_for()


def test_an_unknown_dataset_leads_back_to_the_list(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "ar") as found:
        for place in ("datasets/abc", "datasets/" + "0" * 32):
            page = found.open(place)
            expect(page.locator("main p")).to_contain_text(found.say("missing.dataset"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.jsonl", '{"prompt": "س", "chosen": "أ", "rejected": "ب"}\n{"prompt": "س", "chosen": \n{"prompt": 1}\n'),
        ("empty.csv", ""),
        ("photo.png", "\x89PNG\r\n\x1a\n"),
        ("columns.csv", "سؤال,a,b,c\n1,2,3\n"),
    ],
)
def test_a_broken_file_is_refused_in_arabic(
    browser: Browser, seeded: Seeded, tmp_path: Path, name: str, content: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1" if name.endswith("png") else "utf-8"))
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open("datasets")
        page.locator("#upload").set_input_files(path)
        page.locator(".box.error, .mapper").first.wait_for()
        shown_in_arabic(found, f"file-{name}")


def test_a_refused_model_is_explained_in_arabic(browser: Browser, seeded: Seeded) -> None:
    reason = say("model_fails", kind=say("kind.model"), type="qwen9", problem=PROBLEM)
    error = ModelRefused(reason, [Detail("model_name", reason)]).as_dict()

    def refuse() -> bool:
        with seeded.live.database.transaction() as session:
            task = tasks.claim_next(session, [TaskKind.VALIDATE], 3600)
            if task:
                tasks.finish(session, task, error=error)
            # Others may wait since earlier tests.
            return task is not None and task.request["spec"].get("name") == "مرفوضة"

    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open("new")
        found.button("new.sample").click()
        page.locator("#f-name").fill("مرفوضة")
        with page.expect_request("**/v1/jobs/validate?*"):
            found.button("new.check").click()
        until(refuse)
        expect(page.locator("#f-model")).to_be_focused(timeout=30_000)
        quoted = page.locator("#f-model-error q.apart")
        expect(quoted).to_have_text(PROBLEM)
        expect(quoted).to_have_attribute("lang", "en")
        expect(page.locator("q")).to_have_count(1)
        shown_in_arabic(found, "refused-model")


@pytest.fixture(scope="module")
def runs(seeded: Seeded) -> dict[str, str]:
    """A run that failed, worded and as an earlier version stored it, with warnings of both kinds and every event."""
    found: dict[str, str] = {}
    worded = say("model_fails", kind=say("kind.model"), type="qwen9", problem=PROBLEM)
    for name, error in (("worded", error_dict("model_refused", worded)), ("old", error_dict("internal", "it broke"))):
        found[name] = seeded.submit(f"تجربة {name}", priority=100)
        fence = seeded.claim(found[name])
        clamped = said(say("learning_rate_clamped", asked=1e-3, cap=5e-7, used=5e-7))
        with seeded.live.database.transaction() as session:
            jobs.add_warning(session, fence, {"code": "learning_rate_clamped", **clamped})
            jobs.add_warning(session, fence, {"code": "old", "message": "an old warning"})
            start = {"start": "cold", "reason": "gpu", "since_claim_s": 3.24, "step": 1, "cpu_s": 9.5}
            jobs.record(session, fence, "first_step", {**start, "seconds": {"process": 0.3, "imports": 2.1, "new": 1.0}})
            jobs.record(session, fence, "checkpoint_loaded", {"step": 20, "job_id": seeded.jobs["succeeded"]})
            jobs.record(session, fence, "a_new_kind", {"nested": {"raw": "JSON"}})
        seeded.train(fence, 20)
        seeded.finish(fence, Cause.FAIL, error=error)
    return found


@pytest.mark.parametrize("part", ["curves", "events", "attempts"])
@pytest.mark.parametrize("name", ["worded", "old"])
def test_a_failed_run_is_explained_in_arabic(
    browser: Browser, seeded: Seeded, runs: dict[str, str], name: str, part: str
) -> None:
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open(f"jobs/{runs[name]}/{part}")
        page.locator(".box.error").wait_for()
        problem = {"worded": PROBLEM, "old": "it broke"}[name]
        expect(page.locator(".box.error q.apart[lang=en]")).to_have_text(problem)
        expect(page.locator(".box.warning li")).to_have_count(2)
        if part == "events":
            expect(page.locator("table")).to_contain_text(found.say("cold.gpu"))
            assert "{" not in page.locator("table").inner_text()
        shown_in_arabic(found, f"failed-{name}-{part}")


def test_events_of_every_run_are_sentences(browser: Browser, seeded: Seeded) -> None:
    """In both languages: no JSON, and a name for each event."""
    for language in ("en", "ar"):
        with screen(browser, seeded.live.url, language) as found:
            for job in seeded.jobs.values():
                page: Page = found.open(f"jobs/{job}/events")
                events = page.locator("table").filter(visible=True)
                events.locator("tbody tr").first.wait_for()
                text = events.inner_text()
                assert "{" not in text
                assert "event." not in text
                assert found.untranslated() == []


def test_no_sentence_is_left_in_english() -> None:
    """Latin words in an Arabic sentence are names: none makes a phrase of three plain words."""
    for code, text in catalogue("ar").items():
        for form in [text] if isinstance(text, str) else text.values():
            plain = re.sub(r"`[^`]*`", "", form)
            assert not re.search(r"\b[a-z]+ [a-z]+ [a-z]+\b", plain), (code, json.dumps(form, ensure_ascii=False))
