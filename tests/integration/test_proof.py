"""The proof is of the function that answers: whatever its answers depend on is noticed when it is changed."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.adapters import FILE, FITTING, make_adapter, rewrite
from tests.fakes import RecordingObserver
from tests.training import PROMPT, config, make_model, some_rows, write_rows
from trainer_core import PreferenceTrainer, comparison
from trainer_core.comparison import load_pair
from trainer_core.errors import ModelRefused, ReferenceMismatch, TafdilError
from trainer_core.fingerprints import adapter_tensors, base_tensors, check_covered, fingerprint
from trainer_core.merging import merge
from trainer_core.models import load_model
from trainer_core.reference import model_of
from trainer_core.stored_weights import fingerprint_of_files

METADATA = "ipo_metadata.json"
Change = Callable[[Path], None]


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def setting(file: str, **fields: Any) -> Change:
    """Sets fields of a JSON file."""
    return lambda folder: rewrite_json(folder / file, lambda content: content.update(fields))


def weights(file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    """Changes tensors of a safetensors file."""

    def apply(folder: Path) -> None:
        held = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
        change(held)
        save_file(held, folder / file, {"format": "pt"})

    return apply


def scaled(part: str, factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(held: dict[str, torch.Tensor]) -> None:
        for name in held:
            if part in name:
                held[name] *= factor

    return change


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16 in `base`, and in `out` a run in float32 from an adapter of its embeddings, its own reference."""
    folder = tmp_path_factory.mktemp("proof")
    make_model(folder / "float32", hidden_size=64)
    AutoModelForCausalLM.from_pretrained(folder / "float32", dtype=torch.bfloat16).save_pretrained(folder / "base")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / "float32" / file, folder / "base")
    setting("generation_config.json", repetition_penalty=1.05, do_sample=True, top_k=40)(folder / "base")
    make_adapter(str(folder / "base"), folder / "adapter", target_modules=["q_proj", "embed_tokens"])
    trainer_of(folder, folder / "out", adapter_name=str(folder / "adapter")).train()
    return folder


def trainer_of(place: Path, out: Path, **fields: Any) -> PreferenceTrainer:
    rows = write_rows(place / "rows.jsonl", some_rows("ipo", 16))
    own = {
        "model_name": str(place / "base"),
        "dataset_path": rows,
        "max_steps": 2,
        "sample_generations": 0,
        "precision": "fp32",
    }
    return PreferenceTrainer(config("ipo", out, **{**own, "learning_rate": 1e-2, **fields}), observer=RecordingObserver())


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """`base` and `out` of the run, to be changed."""
    for name in ("base", "out"):
        shutil.copytree(place / name, tmp_path / name)
    return tmp_path


def compare(folder: Path) -> dict[str, Any]:
    pair = load_pair(folder / "out", lambda _: str(folder / "base"))[1]
    return pair.compare(PROMPT, max_new_tokens=2).proof.as_dict()


def merge_of(folder: Path) -> dict[str, Any]:
    return merge(folder / "out", folder / "merged", lambda _: str(folder / "base"))


def proof_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / METADATA).read_text(encoding="utf-8"))["proof"]


def test_an_unchanged_run_is_proved(copy: Path) -> None:
    proof = proof_of(copy)
    assert proof["version"] == 1
    assert proof["base_sha256"] == fingerprint(load_file(copy / "base" / "model.safetensors").items())
    assert proof["adapter_sha256"] == fingerprint(
        (name, tensor) for name, tensor in load_file(copy / "out" / FILE).items() if "lora_" in name
    )
    assert proof["scaling"] == 2.0
    assert proof["generation"] == {"repetition_penalty": 1.05, "top_k": 40}
    assert proof["reference"]["adapter_sha256"] not in (None, proof["adapter_sha256"])
    found = compare(copy)
    assert (found["covers"], found["function_sha256"]) == ("function", proof["function_sha256"])
    assert merge_of(copy)["covers"] == "function"


def another_template(folder: Path) -> None:
    with (folder / "out" / "chat_template.jinja").open("a", encoding="utf-8") as file:
        file.write("{# another #}")


def another_vocabulary(folder: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        one, two = list(words)[300:302]
        words[one], words[two] = words[two], words[one]

    rewrite_json(folder / "out" / "tokenizer.json", swap)


ON_BOTH: dict[str, tuple[Change, str]] = {
    "alpha": (
        setting("out/adapter_config.json", lora_alpha=800),
        "its adapter .* is 200.0, but the metadata has 2.0",
    ),
    "rslora": (setting("out/adapter_config.json", use_rslora=True), "the scaling of its adapter"),
    "alpha of a layer": (setting("out/adapter_config.json", alpha_pattern={"q_proj": 80}), "the scaling of its adapter"),
    "targets": (
        setting("out/adapter_config.json", target_modules=["embed_tokens"]),
        "belong to layers that it does not adapt",
    ),
    "rank": (setting("out/adapter_config.json", r=2), "size mismatch"),
    "zeroed": (weights(f"out/{FILE}", scaled("lora_B", 0)), "the weights of its adapter differ"),
    "nudged": (weights(f"out/{FILE}", scaled("layers.1.self_attn.q_proj.lora_A", 1.0001)), "the weights of its adapter"),
    "embeddings": (weights(f"out/{FILE}", scaled("lora_embedding_A", -3)), "the weights of its adapter differ"),
    "base": (weights("base/model.safetensors", scaled("layers.0.mlp.up_proj", 2)), "the weights of its base differ"),
    "template": (another_template, "the chat template"),
    "vocabulary": (another_vocabulary, "the tokenizer"),
    "system prompt": (setting(f"out/{METADATA}", system_prompt="أجب بإيجاز"), "the chat template"),
    "no template": (setting(f"out/{METADATA}", uses_chat_template=False), "the chat template"),
    "beta": (setting(f"out/{METADATA}", beta=0.7), "beta is 0.7, but the metadata has 0.1"),
    "control tokens": (setting(f"out/{METADATA}", special_tokens_in_text="allow"), "control tokens in text is allow"),
    "stop tokens": (
        setting(f"out/{METADATA}", stop_tokens=[{"id": 7, "token": "x", "named_by": ["generation_config"]}]),
        "the set of tokens that end an answer",
    ),
    "penalty": (setting("base/generation_config.json", repetition_penalty=1.5), "its generation settings"),
    "sampling": (setting("base/generation_config.json", top_p=0.2), "its generation settings"),
    "no settings": (lambda folder: (folder / "base" / "generation_config.json").unlink(), "its generation settings"),
    "configuration": (setting("base/config.json", rms_norm_eps=0.5), "rms_norm_eps in its configuration .* is 0.5"),
}
ON_COMPARE: dict[str, tuple[Change, str]] = {
    "reference's alpha": (
        setting("out/ref/adapter_config.json", lora_alpha=80),
        "for its reference, the scaling of its",
    ),
    "reference's weights": (
        weights(f"out/ref/{FILE}", scaled("lora_B", 2)),
        "the weights of the reference have changed since its training",
    ),
    "reference": (
        setting(f"out/{METADATA}", reference="base"),
        "the weights of the reference have changed since its training",
    ),
    "4 bit": (setting(f"out/{METADATA}", load_in_4bit=True), "4-bit loading of its base model is true"),
}


@pytest.mark.parametrize("name", [*ON_BOTH, *ON_COMPARE])
def test_a_comparison_notices_a_change(name: str, copy: Path) -> None:
    change, told = {**ON_BOTH, **ON_COMPARE}[name]
    change(copy)
    with pytest.raises((ReferenceMismatch, ModelRefused), match=told):
        compare(copy)


@pytest.mark.parametrize("name", ON_BOTH)
def test_a_merge_notices_a_change(name: str, copy: Path) -> None:
    change, told = ON_BOTH[name]
    change(copy)
    with pytest.raises((ReferenceMismatch, ModelRefused), match=told):
        merge_of(copy)
    assert not (copy / "merged").exists()


FIELDS = (
    "version",
    "base_sha256",
    "adapter_sha256",
    "scaling",
    "variants",
    "load_in_4bit",
    "config",
    "generation",
    "template_sha256",
    "tokenizer_sha256",
    "special_tokens_in_text",
    "stop_ids",
    "beta",
    "function_sha256",
)
OF_REFERENCE = ("base_sha256", "adapter_sha256", "scaling", "variants", "load_in_4bit")
OUTSIDE = ("weights_sha256", "base_weights_sha256", "reference_sha256", "template_sha256", "beta")


def test_no_field_of_the_proof_is_left_out(place: Path) -> None:
    proof = proof_of(place)
    assert set(proof) == {*FIELDS, "reference"}
    assert set(proof["reference"]) == set(OF_REFERENCE)


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, next(iter(value)): 77}
    if isinstance(value, str):
        return value[::-1] + value[:1]
    return [*value, 7] if isinstance(value, list) else value * 2


@pytest.mark.parametrize("name", [*FIELDS, *(f"reference.{name}" for name in OF_REFERENCE)])
def test_every_field_is_compared(name: str, copy: Path) -> None:
    def change(metadata: dict[str, Any]) -> None:
        held = metadata["proof"]["reference"] if "." in name else metadata["proof"]
        own = name.rpartition(".")[2]
        held[own] = other(held[own])

    rewrite_json(copy / "out" / METADATA, change)
    with pytest.raises((ReferenceMismatch, ModelRefused)):
        compare(copy)
    # A merge has no reference, and makes a model that is held whole.
    if "." not in name and name != "load_in_4bit":
        with pytest.raises((ReferenceMismatch, ModelRefused)):
            merge_of(copy)


@pytest.mark.parametrize("name", OUTSIDE)
def test_fields_that_say_the_same_are_compared(name: str, copy: Path) -> None:
    rewrite_json(copy / "out" / METADATA, lambda metadata: metadata.update({name: other(metadata[name])}))
    with pytest.raises(ReferenceMismatch):
        compare(copy)


def test_a_proof_of_a_later_version_is_refused(copy: Path) -> None:
    rewrite_json(copy / "out" / METADATA, lambda metadata: metadata["proof"].update(version=2))
    with pytest.raises(
        ModelRefused, match="proof in the metadata has version 2, which this version of tafdil does not know"
    ):
        compare(copy)


# -- adapters of embeddings


@pytest.mark.parametrize("reference", ["adapter", "base"])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["q_proj", "embed_tokens"]])
def test_an_adapter_of_embeddings_trains_and_is_proved(
    targets: list[str], reference: str, place: Path, tmp_path: Path
) -> None:
    make_adapter(str(place / "base"), tmp_path / "adapter", target_modules=targets)
    fields = {"adapter_name": str(tmp_path / "adapter"), "adapter_reference": reference}
    trainer = trainer_of(place, tmp_path / "out", **fields)
    trainer.train()
    metadata = trainer.metadata()
    assert len({metadata[name] for name in ("weights_sha256", "base_weights_sha256", "reference_sha256")}) == (
        3 if reference == "adapter" else 2
    )
    live = trainer.generate_with_comparison(PROMPT, max_length=2)["proof"]
    assert live["trained_fingerprint"] == metadata["weights_sha256"] != live["reference_fingerprint"]
    assert live["max_logit_difference"] > 0
    saved = load_pair(tmp_path / "out", str)[1].compare(PROMPT, max_new_tokens=2).proof.as_dict()
    # The base's config names bfloat16, in which saved models answer.
    numbers = ("max_logit_difference", "mean_kl")
    assert {name: saved[name] for name in numbers} == pytest.approx({name: live[name] for name in numbers}, rel=0.05)
    assert {**saved, **{name: live[name] for name in numbers}} == live
    with torch.no_grad():
        dict(adapter_tensors(trainer.model, "default"))["base_model.model.model.embed_tokens.lora_embedding_A"].mul_(-3)
    assert trainer.metadata()["weights_sha256"] != metadata["weights_sha256"]


@pytest.mark.parametrize("kind", ["dora", "patterns", "biases of B"])
def test_adapters_of_other_kinds_are_proved(kind: str, place: Path, tmp_path: Path) -> None:
    make_adapter(str(place / "base"), tmp_path / "adapter", **FITTING[kind])
    trainer = trainer_of(place, tmp_path / "out", adapter_name=str(tmp_path / "adapter"))
    trainer.train()
    proof = trainer.metadata()["proof"]
    assert proof["variants"] == (["DoraLinearVariant"] if kind == "dora" else [])
    assert sorted(set(proof["scaling"].values()) if kind == "patterns" else [proof["scaling"]]) == (
        [2.0, 4.0] if kind == "patterns" else [2.0]
    )
    found = load_pair(tmp_path / "out", str)[1].compare(PROMPT, max_new_tokens=2).proof
    assert found.function_sha256 == proof["function_sha256"]


def test_an_adapter_that_became_one_of_another_kind_is_noticed(place: Path, tmp_path: Path) -> None:
    trainer_of(place, tmp_path / "out").train()
    shutil.copytree(place / "base", tmp_path / "base")
    setting("out/adapter_config.json", alora_invocation_tokens=[5, 6])(tmp_path)
    for act in (compare, merge_of):
        with pytest.raises((ReferenceMismatch, ModelRefused), match="the kind of its adapter"):
            act(tmp_path)


def test_new_adapters_of_embeddings(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of(place, tmp_path / "out", lora_target_modules=["embed_tokens", "v_proj"])
    trainer.train()
    assert any("lora_embedding_B" in name for name, _ in adapter_tensors(trainer.model, "default"))
    proof = load_pair(tmp_path / "out", str)[1].compare(PROMPT, max_new_tokens=2).proof
    assert proof.trained_fingerprint == trainer.metadata()["weights_sha256"]
    assert proof.max_logit_difference > 0


def test_a_merge_unties_embeddings_that_the_adapter_changed(place: Path, tmp_path: Path) -> None:
    base = load_model(str(place / "base"), torch.float32)
    base.config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(place / "base" / file, tmp_path / "base")
    make_adapter(str(tmp_path / "base"), tmp_path / "adapter", target_modules=["embed_tokens"])
    trainer_of(tmp_path, tmp_path / "out", adapter_name=str(tmp_path / "adapter")).train()
    told = merge(tmp_path / "out", tmp_path / "merged")
    assert told["max_logit_difference"] < 1e-4
    merged = load_model(str(tmp_path / "merged"), torch.float32)
    assert fingerprint(base_tensors(merged)) == told["weights_sha256"]


def test_what_trains_and_is_in_no_fingerprint_stops_the_run(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of(place, tmp_path)
    trainer.prepare()
    dict(base_tensors(trainer.model))["model.norm.weight"].requires_grad_(True)
    with pytest.raises(ReferenceMismatch, match=r"no fingerprint covers 1 of the trained tensors.*norm\.weight"):
        trainer.train()
    frozen = dict(adapter_tensors(trainer.model, "default"))
    dict(base_tensors(trainer.model))["model.norm.weight"].requires_grad_(False)
    next(iter(frozen.values())).requires_grad_(False)
    with pytest.raises(ReferenceMismatch, match="is not trained"):
        check_covered(trainer.model, "default")


# -- values as they are stored


def test_a_base_has_one_fingerprint_in_every_dtype(place: Path) -> None:
    stored = fingerprint(load_file(place / "base" / "model.safetensors").items())
    for path in ("base", "float32"):
        own = fingerprint(load_file(place / path / "model.safetensors").items())
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            live = base_tensors(load_model(str(place / path), dtype))
            assert fingerprint_of_files(live, str(place / path)) == own
    assert own != stored


@pytest.mark.parametrize("is_earlier", [False, True])
@pytest.mark.parametrize("use_lora", [True, False])
def test_a_comparison_in_another_dtype_than_the_training_has_the_same_proof(
    use_lora: bool, is_earlier: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "base", tmp_path / "base")
    trainer_of(place, tmp_path / "out", use_lora=use_lora, learning_rate=1e-4).train()
    if is_earlier:
        as_earlier(tmp_path)
    before = compare(tmp_path)
    monkeypatch.setattr(comparison, "answering_dtype", lambda *_: torch.bfloat16)
    after = compare(tmp_path)
    same = ("trained_fingerprint", "reference_fingerprint", "function_sha256", "covers")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_a_4_bit_base_is_proved_by_what_it_was_packed_from(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of(place, tmp_path / "out", load_in_4bit=True)
    trainer.train()
    proof = trainer.metadata()["proof"]
    assert proof["load_in_4bit"] is True
    assert proof["base_sha256"] == proof_of(place)["base_sha256"]
    shutil.copytree(place / "base", tmp_path / "base")
    assert compare(tmp_path)["function_sha256"] == proof["function_sha256"]
    weights("base/model.safetensors", scaled("up_proj", -1))(tmp_path)
    for act in (compare, merge_of):
        with pytest.raises(ReferenceMismatch, match="the weights of its base differ"):
            act(tmp_path)
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(place / "base", tmp_path / "base")
    pair = load_pair(tmp_path / "out", lambda _: str(tmp_path / "base"))[1]
    packed: Any = pair.policy.get_base_model().model.layers[0].mlp.up_proj.weight
    packed.data.fill_(7)
    with pytest.raises(ReferenceMismatch, match=r"up_proj\.weight is not what model\.safetensors contains"):
        pair.compare(PROMPT, max_new_tokens=2)


def test_4_bit_weights_that_change_in_memory_are_noticed(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of(place, tmp_path, load_in_4bit=True)
    trainer.train()
    layer: Any = trainer.model.get_base_model().model.layers[0].mlp.up_proj
    layer.weight.quant_state.absmax[0] += 1
    with pytest.raises(ReferenceMismatch, match=r"changed in memory after loading: model\.layers\.0\.mlp\.up_proj"):
        trainer.generate_with_comparison(PROMPT, max_length=2)


# -- in the library, after training


@pytest.mark.parametrize("fields", [{}, {"use_lora": False, "learning_rate": 1e-4}], ids=str)
def test_a_reference_that_changed_in_memory_answers_nothing(fields: dict[str, Any], place: Path, tmp_path: Path) -> None:
    trainer = trainer_of(place, tmp_path, **fields)
    trainer.train()
    assert trainer.generate_with_comparison(PROMPT, max_length=2)["proof"]["covers"] == "function"
    held = trainer.model if not fields else trainer._reference_for_scoring()
    with torch.no_grad():
        dict(base_tensors(held))["model.layers.0.mlp.up_proj.weight"].add_(1e-3)
    with pytest.raises(ReferenceMismatch, match=r"up_proj\.weight is not what model\.safetensors contains"):
        trainer.generate_with_comparison(PROMPT, max_length=2)


# -- metadata of earlier versions


def as_earlier(folder: Path) -> None:
    """Writes the metadata as versions without a proof did, with fingerprints of weights in the dtype of the run."""
    pair = load_pair(folder / "out", lambda _: str(folder / "base"))[1]
    trained, reference = (
        fingerprint((name, tensor.float()) for name, tensor in base_tensors(model))
        for model in (pair.policy, model_of(pair.reference))
    )

    def change(metadata: dict[str, Any]) -> None:
        del metadata["proof"]
        if metadata["use_lora"]:
            metadata["base_weights_sha256"] = trained
        for name, base, adapter in (("weights_sha256", trained, "default"), ("reference_sha256", reference, "ref")):
            mark = f".{adapter}."
            named = ((key.replace(mark, "."), one) for key, one in pair.policy.named_parameters() if mark in key)
            own = [(key, one) for key, one in named if "lora_" in key]
            metadata[name] = sha256(f"{base}+{fingerprint(own)}".encode()).hexdigest() if own else base

    rewrite_json(folder / "out" / METADATA, change)


def test_metadata_of_earlier_versions_is_proved_by_tensors(copy: Path) -> None:
    as_earlier(copy)
    found = compare(copy)
    assert (found["covers"], found["function_sha256"]) == ("tensors only", None)
    assert found["trained_fingerprint"] == json.loads((copy / "out" / METADATA).read_text())["weights_sha256"]
    assert merge_of(copy)["covers"] == "tensors only"


@pytest.mark.parametrize("name", ["zeroed", "nudged", "base"])
def test_metadata_of_earlier_versions_is_held_to_its_tensors(name: str, copy: Path) -> None:
    as_earlier(copy)
    if name == "zeroed":
        rewrite(copy / "out", lambda held: {key: tensor * (0 if "lora_B" in key else 1) for key, tensor in held.items()})
    else:
        ON_BOTH[name][0](copy)
    for act in (compare, merge_of):
        with pytest.raises(TafdilError, match="have changed since its training ended"):
            act(copy)
