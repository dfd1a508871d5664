"""What a model card says, and what of a stranger's card it repeats."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load

from trainer_core import model_card

METADATA: dict[str, Any] = {
    "training_method": "kto",
    "model_name": "acme/base",
    "beta": 0.1,
    "learning_rate": 1e-6,
    "dtype": "bfloat16",
    "weights_sha256": "a" * 64,
    "evaluation": {"step": 7, "eval_loss": 0.5, "eval_desirable_accuracy": None},
    "stop_tokens": [{"id": 2}, {"id": 5}],
}


def written(folder: Path, base: str = "nowhere/at-all", **fields: Any) -> tuple[str, dict[str, Any]]:
    more = {name: fields.pop(name) for name in ("step", "merged") if name in fields}
    model_card.write(folder, {**METADATA, **fields}, base, **more)
    matter = metadata_load(folder / "README.md")
    assert matter is not None
    return (folder / "README.md").read_text(encoding="utf-8"), matter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text("peft's, with /srv/models", encoding="utf-8")
    return tmp_path


def test_of_an_adapter(adapter: Path) -> None:
    card, matter = written(adapter)
    assert matter == {
        "base_model": "acme/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "other",
        "license_name": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["kto", "preference-optimization", "lora", "trl", "tafdil"],
    }
    assert "# KTO LoRA adapter of acme/base\n" in card
    assert 'peft.AutoPeftModelForCausalLM.from_pretrained(".", dtype="bfloat16")' in card
    assert "| eval_loss | 0.5 |" in card
    assert "eval_desirable_accuracy" not in card, "the rows had no such label"
    assert f"| Trained weights | `{'a' * 64}` |" in card
    assert "`eos_token_id=[2, 5]`" in card
    assert "/srv" not in card
    assert "checkpoint of step 7" in written(adapter, step=7)[0]


def test_of_an_adapter_on_a_4_bit_base(adapter: Path) -> None:
    card, _ = written(adapter, load_in_4bit=True)
    assert "Trained on the base in 4 bit" in card
    assert "quantization_config=in_4bit" in card
    assert "BitsAndBytesConfig" not in written(adapter)[0]


def test_of_whole_weights(tmp_path: Path) -> None:
    card, matter = written(tmp_path, dtype="float32", uses_chat_template=False)
    assert (matter["library_name"], matter["base_model_relation"]) == ("transformers", "finetune")
    assert "lora" not in matter["tags"]
    assert 'transformers.AutoModelForCausalLM.from_pretrained(".", dtype="float32")' in card
    assert "without a chat template" in card
    merged, matter = written(tmp_path, merged=True, merged_sha256="b" * 64, system_prompt="كن موجزًا")
    assert "lora" in matter["tags"]
    assert f"| These weights | `{'b' * 64}` |" in merged
    assert "after the system prompt that the metadata file holds" in merged


@pytest.mark.parametrize("name", ["/srv/models/base", "a/b/c", "-x"])
def test_a_base_that_the_hub_could_not_name_is_not_in_its_fields(name: str, adapter: Path) -> None:
    card, matter = written(adapter, model_name=name)
    assert "base_model" not in matter
    assert "/srv" not in card


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://example.org/LICENSE\n---\n",
            {"license": "other", "license_name": "qwen-research", "license_link": "https://example.org/LICENSE"},
        ),
        ("---\nlicense: other\nlicense_link: LICENSE\n---\n", {"license": "other"}),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ('---\nlicense: "x\\n---\\n# Run this"\n---\n', None),
        ("---\nlicense: {a: [}\n---\n", None),
        ("# no front matter\n", None),
        ("", None),
    ],
)
def test_the_licence_is_that_of_the_base(said: str, expected: dict[str, str] | None, tmp_path: Path) -> None:
    unknown = {"license": "other", "license_name": "unknown"}
    assert model_card.licence_of(str(tmp_path)) == unknown
    (tmp_path / "README.md").write_text(said, encoding="utf-8")
    assert model_card.licence_of(str(tmp_path)) == (expected or unknown)


def test_the_licence_may_be_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"license": "mit"}', encoding="utf-8")
    assert model_card.licence_of(str(tmp_path)) == {"license": "mit"}
    (tmp_path / "config.json").write_text("[", encoding="utf-8")
    assert model_card.licence_of(str(tmp_path))["license_name"] == "unknown"


def test_the_last_evaluation_of_a_log() -> None:
    log = [{"step": 0, "eval_loss": 1.0}, {"step": 5, "eval_loss": 0.5, "eval_runtime": 3.0}, {"step": 6, "loss": 0.4}]
    assert model_card.evaluation(log) == {"step": 5, "eval_loss": 0.5}
    assert model_card.evaluation([{"step": 6, "loss": 0.4}]) is None
