"""The form of a new job: made of what `/v1/methods` says, for methods that no script names, and sent as it was filled in."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from api.routes.methods import list_methods
from tests.browser.chromium import PHONE, Screen, screen
from tests.browser.seed import Seeded
from tests.training import config
from trainer_core.config import SETTINGS
from trainer_core.dry_run import Machine, dry_run

METHODS = json.loads(list_methods().model_dump_json())["methods"]


def label(name: str, language: str) -> str:
    return next(each["label"][language] for each in METHODS[0]["fields"] if each["name"] == name)


def checked(found: Screen) -> dict[str, Any]:
    """The spec that the form sends when it is checked."""
    with found.page.expect_request("**/v1/jobs/validate?*") as request:
        found.button("new.check").click()
    return request.value.post_data_json


def on_labels_first() -> tuple[str, str]:
    """A method on labelled rows, and one on pairs."""
    labels = next(each.method_name for each in SETTINGS if each.rows == "labels")
    return labels, next(each.method_name for each in SETTINGS if each.rows == "pairs")


def choose(page: Page, name: str) -> None:
    page.locator(f"input[type=radio][value={name}]").check()


def without_recipe(page: Page) -> None:
    page.locator("input[name=recipe][value='']").check()


def test_the_sample_job_is_the_methods_own(browser: Browser, seeded: Seeded) -> None:
    with screen(browser, seeded.live.url, "en") as found:
        for method in METHODS:
            found.page.goto("about:blank")
            page = found.open("new")
            if not page.locator(f"input[value={method['name']}]").is_visible():
                page.get_by_text(found.say("new.more_methods"), exact=True).click()
            choose(page, method["name"])
            found.button("new.sample").click()
            assert checked(found) == method["example"]


def test_every_kind_of_field_is_sent_as_the_spec_takes_it(browser: Browser, seeded: Seeded) -> None:
    wanted: dict[str, Any] = {
        "max_steps": 7,
        "learning_rate": 2e-5,
        "eval_steps": "epoch",
        "save_steps": 0.25,
        "learning_rate_cap": None,
        "use_lora": False,
        "eval_on_start": False,
        "apply_chat_template": True,
        "gradient_checkpointing": "auto",
        "lr_scheduler_type": "cosine",
        "system_prompt": "أجب بأدب.\nوباختصار.",
        "sample_prompts": ["ما عاصمة مصر؟", "ما عاصمة المغرب؟"],
        "lora_target_modules": "q_proj",
        "report_to": ["tensorboard", "wandb"],
        "chat_template_kwargs": {"enable_thinking": False},
        "dataset_path": "samples/pairs_train.jsonl",
    }
    with screen(browser, seeded.live.url, "ar") as found:
        page = found.open("new")
        without_recipe(page)
        found.unfold()
        for name, text in (("max_steps", "٧"), ("learning_rate", "2e-5"), ("eval_steps", "epoch"), ("save_steps", "٠٫٢٥")):
            page.locator(f"#f-{name}").fill(text)
        for name in ("eval_on_start", "apply_chat_template", "gradient_checkpointing", "lr_scheduler_type"):
            value = wanted[name]
            page.locator(f"#f-{name}").select_option(value if isinstance(value, str) else json.dumps(value))
        page.locator("#f-learning_rate_cap").locator("..").get_by_role("checkbox").check()
        page.locator("#f-use_lora").uncheck()
        page.locator("#f-use_dora").check()
        page.locator("#f-use_dora").uncheck()
        page.locator("#f-system_prompt").fill(wanted["system_prompt"])
        page.locator("#f-sample_prompts").fill("\n".join([*wanted["sample_prompts"], " "]))
        page.locator("#f-lora_target_modules").fill("q_proj")
        page.locator("#f-report_to").fill("tensorboard\nwandb")
        page.locator("#f-chat_template_kwargs").fill('{"enable_thinking": false}')
        page.locator("#f-data").select_option("path:samples/pairs_train.jsonl")
        found.keep("new-filled")
        spec = checked(found)
        assert {name: spec[name] for name in wanted} == wanted
        assert set(spec) == {*wanted, "method", "model_name"}


def test_a_cloned_job_is_sent_as_it_was(browser: Browser, seeded: Seeded) -> None:
    labels, _ = on_labels_first()
    fields = {
        "learning_rate_cap": None,
        "sample_prompts": ["سطر\nوسطر", "[آخر"],
        "lora_target_modules": ["q_proj"],
        "datasets": [{"dataset_path": "samples/pairs_train.jsonl", "rows": 8}],
        "use_rslora": True,
        "max_grad_norm": 0.5,
    }
    job = seeded.submit("نسخة", labels, dataset_path=None, **fields)
    with screen(browser, seeded.live.url, "en") as found:
        page = found.open(f"new?from={job}")
        expect(page.locator("#f-name")).to_have_value("نسخة")
        summary = page.locator("details.more > summary")
        expect(summary).to_contain_text("use_rslora")
        spec = checked(found)
        assert {name: spec[name] for name in fields} == fields
        assert "dataset_path" not in spec


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_method_that_no_script_knows_has_its_place(browser: Browser, seeded: Seeded, language: str) -> None:
    labels, pairs = on_labels_first()
    old = next(each for each in METHODS if each["name"] == pairs)
    texts = {"en": "pairs, for a test", "ar": "أزواج للاختبار"}
    own = {**old["fields"][-1], "name": "own", "types": ["number"], "choices": [], "required": False, "is_main": True}
    own |= {"default": 2.5, "minimum": 1, "unit": "tokens", "label": {"en": "Own", "ar": "خاص"}, "help": texts}
    new = {**old, "name": "newpo", "title": "NewPO", "headline": False, "description": texts}
    new |= {"fields": [*old["fields"], own], "example": {**old["example"], "method": "newpo", "own": 4.5}}

    def answer(route: Route) -> None:
        route.fulfill(json={"methods": [new, *METHODS]})

    with screen(browser, seeded.live.url, language) as found:
        found.page.route("**/v1/methods", answer)
        page = found.open("jobs")
        assert page.locator("form.filters option[value=newpo]").inner_text() == "NewPO"
        page = found.open("new")
        expect(page.locator(f"input[value={METHODS[0]['name']}]")).to_be_checked()
        expect(page.locator("input[value=newpo]")).to_be_hidden()
        page.locator("fieldset details > summary").get_by_text(found.say("new.more_methods"), exact=True).click()
        page.get_by_role("radio", name=f"NewPO {texts[language]}").check()
        without_recipe(page)
        expect(page.locator("#f-own")).to_have_attribute("placeholder", "2.5")
        found.button("new.sample").click()
        expect(page.locator("#f-own")).to_have_value("4.5")
        expect(page.locator("#f-own-hint")).to_contain_text("≥ 1")
        # Labelled rows do not train it: neither the sample file nor the uploaded dataset is offered.
        assert page.locator("#f-data option").count() == 1 + len(
            {old["example"]["dataset_path"], old["example"]["eval_dataset_path"]}
        )
        spec = checked(found)
        assert (spec["method"], spec["own"]) == ("newpo", 4.5)
        choose(page, labels)
        expect(page.locator("#f-own")).to_have_count(0)
        assert page.locator("#f-data option").count() > 3
        assert found.untranslated() == []
        assert found.barriers() == []
        page.set_viewport_size(PHONE)
        assert not found.is_too_wide()


def test_another_method_keeps_what_its_fields_can_take(browser: Browser, seeded: Seeded) -> None:
    labels, pairs = on_labels_first()
    with screen(browser, seeded.live.url, "en") as found:
        page = found.open("new")
        found.unfold()
        choose(page, labels)
        page.locator("#f-use_lora").uncheck()
        page.locator("#f-eval_on_start").select_option("false")
        page.locator("#f-learning_rate_cap").locator("..").get_by_role("checkbox").check()
        only_labels = "overall_accuracy"
        page.locator("#f-early_stopping_metric").select_option(only_labels)
        page.locator("#f-data").select_option("path:samples/pairs_train.jsonl")
        choose(page, pairs)
        expect(page.locator("#f-use_lora")).not_to_be_checked()
        spec = checked(found)
        assert spec["method"] == pairs
        assert (spec["use_lora"], spec["eval_on_start"], spec["learning_rate_cap"]) == (False, False, None)
        assert "early_stopping_metric" not in spec


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_recipe_comes_first_and_numbers_after_it(browser: Browser, seeded: Seeded, language: str, tmp_path: Path) -> None:
    said = dry_run(config("kto", tmp_path), Machine(on_gpu=False, flops_per_s=1e10))
    with screen(browser, seeded.live.url, language) as found, ThreadPoolExecutor() as pool:
        page = found.open("new")
        expect(page.locator("input[name=recipe]").first).to_be_checked()
        expect(page.locator("#f-learning_rate")).to_be_hidden()
        page.locator("#f-data").select_option("path:samples/kto_train.jsonl")
        page.locator("input[name=recipe][value=careful]").check()
        found.unfold()
        # The default of a field can be chosen too, because the recipe would set another value.
        page.locator("#f-gradient_checkpointing").select_option("true")
        for width in (360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert not found.is_too_wide()
            found.keep(f"recipe-{width}")
        assert found.untranslated() == found.barriers() == []
        seeded.drop_dry_runs()
        answered = pool.submit(seeded.answer_dry_run, said)
        spec = checked(found)
        answered.result()
        assert (spec["recipe"], spec["gradient_checkpointing"]) == ("careful", True)
        assert not {"learning_rate", "num_train_epochs", "max_steps"} & spec.keys()
        table = page.locator(".report table", has_text=found.say("recipe.set"))
        expect(table).to_contain_text("learning_rate_cap")
        expect(table.locator("tbody tr").first).to_contain_text("validation_split")
        expect(page.locator(".report")).to_contain_text(found.say("recipe.careful"))
        expect(page.locator(".report .facts").first).to_contain_text(found.say("dry.time"))
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert not found.is_too_wide()
            found.keep(f"recipe-dry-run-{width}")
        assert found.untranslated() == found.barriers() == []
        job = httpx.post(f"{seeded.live.url}/v1/jobs", json=spec).json()["id"]
        page = found.open(f"jobs/{job}")
        expect(page.locator(".facts").first).to_contain_text(found.say("recipe.careful"))
        page.get_by_text(found.say("recipe.set"), exact=True).click()
        page.get_by_role("cell", name="validation_split").wait_for()
        assert found.untranslated() == found.barriers() == []
        page = found.open(f"new?from={job}")
        expect(page.locator("input[name=recipe][value=careful]")).to_be_checked()
        expect(page.locator("details.more > summary")).to_contain_text("gradient_checkpointing")


@pytest.mark.parametrize("text", ["Infinity", "1e999"])
def test_a_number_that_is_infinite_is_no_null(browser: Browser, seeded: Seeded, text: str) -> None:
    """`null` would lift the cap."""
    with screen(browser, seeded.live.url, "en") as found:
        page = found.open("new")
        without_recipe(page)
        page.locator("#f-learning_rate_cap").fill(text)
        page.locator("#f-data").select_option("path:samples/pairs_train.jsonl")
        assert checked(found)["learning_rate_cap"] == text
        expect(page.locator(".field", has=page.locator("#f-learning_rate_cap")).locator(".wrong")).to_be_visible()


def test_the_name_of_a_dataset_goes_with_it(browser: Browser, seeded: Seeded) -> None:
    _, pairs = on_labels_first()
    method = next(each for each in METHODS if each["name"] == pairs)
    first, second = ({"dataset_path": method["example"][name]} for name in ("dataset_path", "eval_dataset_path"))
    mix = [{**first, "name": "تدريب"}, {**second, "name": "تقييم"}]
    job = seeded.submit("مزيج", pairs, dataset_path=None, datasets=mix)
    with screen(browser, seeded.live.url, "en") as found:
        page = found.open(f"new?from={job}")
        expect(page.locator("#f-name")).to_have_value("مزيج")
        assert checked(found)["datasets"] == mix
        page.locator("#f-mix-1").select_option(f"path:{first['dataset_path']}")
        assert checked(found)["datasets"] == [mix[0], first]
