"""Models that are kept warm: one base for several trainings, within a limit of memory, and proved all the same."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.fakes import RecordingObserver
from tests.training import PROMPT, config, make_model
from trainer_core import PreferenceTrainer, fingerprints
from trainer_core.comparison import load_pair
from trainer_core.errors import ModelNotFound, ReferenceMismatch
from trainer_core.fingerprints import Remembered, base_tensors, fingerprint
from trainer_core.warm import WarmPairs

NAMES = ("aa", "bb", "cc")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trainings on one model: with LoRA, going on from that adapter, and of all weights."""
    folder = tmp_path_factory.mktemp("warm")
    model = make_model(folder / "model")
    more = {"aa": {}, "bb": {"adapter_name": str(folder / "aa")}, "cc": {"use_lora": False}}
    for seed, name in enumerate(NAMES):
        fields = {"model_name": model, "learning_rate": 0.02, "seed": seed, **more[name]}
        PreferenceTrainer(config("ipo", folder / name, **fields), observer=RecordingObserver()).train()
    return folder


def make_pairs(limit_bytes: int = 2**40) -> WarmPairs:
    return WarmPairs(limit_bytes, lambda name: name)


def test_trainings_on_one_base_share_it_and_answer_as_if_alone(trained: Path) -> None:
    pairs = make_pairs()
    for name in (*NAMES, *NAMES):
        found = pairs.get(name, trained / name)[1].compare(PROMPT, max_new_tokens=8)
        alone = load_pair(trained / name, lambda path: path)[1].compare(PROMPT, max_new_tokens=8)
        assert found == alone
    first, second, full = (pairs.get(name, trained / name)[1] for name in NAMES)
    assert first.policy is second.policy
    assert first.policy is not full.policy
    assert set(first.policy.peft_config) == {"aa", "bb", "bb-ref"}


def test_the_least_recently_used_pair_goes_when_memory_ends(trained: Path) -> None:
    pairs = make_pairs()
    pairs.get("aa", trained / "aa")
    with_one = pairs.bytes
    pairs.get("bb", trained / "bb")
    with_both = pairs.bytes
    assert with_both < 1.5 * with_one, "an adapter, not a second base"
    tight = make_pairs(with_both)
    for name in ("aa", "bb", "aa"):
        tight.get(name, trained / name)
    assert tight.names == ["bb", "aa"]
    tight.get("cc", trained / "cc")
    assert tight.names == ["cc"], "the full model with its reference leaves no room"
    tight.get("aa", trained / "aa")
    assert tight.names == ["aa"]
    assert tight.bytes == with_one
    assert make_pairs(0).get("aa", trained / "aa")[1].compare(PROMPT, max_new_tokens=2)


def test_what_cannot_be_loaded_leaves_nothing_behind(trained: Path, tmp_path: Path) -> None:
    pairs = make_pairs()
    first = pairs.get("aa", trained / "aa")[1]
    broken = tmp_path / "broken"
    shutil.copytree(trained / "bb", broken)
    (broken / "ref" / "adapter_config.json").write_text("{")
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever peft makes of it
        pairs.get("dd", broken)
    with pytest.raises(ModelNotFound):
        pairs.get("ee", tmp_path)
    assert pairs.names == ["aa"]
    assert set(first.policy.peft_config) == {"aa"}
    assert pairs.get("aa", trained / "aa")[1].compare(PROMPT, max_new_tokens=2)
    pairs.forget("aa")
    pairs.forget("never there")
    assert pairs.bytes == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_live_weights_is_noticed_although_fingerprints_are_remembered(name: str, trained: Path) -> None:
    pair = make_pairs().get(name, trained / name)[1]
    before = pair.compare(PROMPT, max_new_tokens=2).proof
    assert pair.compare(PROMPT, max_new_tokens=2).proof == before
    weight = dict(base_tensors(pair.policy))["model.layers.1.mlp.up_proj.weight"]
    weight.data[3, 5] += 1e-3
    with pytest.raises(ReferenceMismatch, match="the weights of the trained model differ from its files"):
        pair.compare(PROMPT, max_new_tokens=2)


def test_fingerprints_are_taken_anew_only_when_weights_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(fingerprints, "fingerprint", lambda *asked: taken.append(1) or fingerprint(*asked))
    torch.manual_seed(0)
    weights = {
        "long": torch.randn(70, 100),
        "short": torch.randn(3),
        "half": torch.randn(33, 7, dtype=torch.bfloat16),
        "bytes": torch.randint(0, 255, (4099,), dtype=torch.uint8),
        "view": torch.randn(50, 50)[3:, 1:],
        "empty": torch.zeros(0),
    }
    remembered = Remembered()

    def asked() -> str:
        return remembered.fingerprint("base", weights.items())

    first = asked()
    assert first == fingerprint(weights.items())
    assert asked() == first
    assert len(taken) == 1
    for name in ("long", "short", "half", "bytes", "view"):
        flat = weights[name].data
        flat[-1] = flat[-1] + 1
        assert asked() == fingerprint(weights.items()) != first, name
        first = asked()
    swapped = weights["long"][:41].clone()
    weights["long"][:41] = weights["long"][29:].clone()
    weights["long"][29:] = swapped
    assert asked() == fingerprint(weights.items()) != first
    assert len(taken) == 7
