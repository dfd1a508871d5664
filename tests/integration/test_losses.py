"""Each trainer's loss and gradients against the float64 references: same weights, no shared code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from tests import reference_losses
from tests.fakes import RecordingObserver
from tests.methods import Answered, facts_of
from tests.training import METHODS, config, make_model
from trainer_core import PreferenceTrainer
from trainer_core.models import load_policy
from trainer_core.reference import FrozenView

CASES = [(method, fields) for method in METHODS for fields in facts_of(method).CASES]


def moved(trainer: PreferenceTrainer) -> None:
    """Moves the policy away from its reference, or every log-ratio would be 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in trainer.model.named_parameters():
            if tensor.requires_grad and "lora_A" not in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.01)


def reference_loss(method: str, settings: Any, rows: list[dict[str, Any]], policy: Any, frozen: Any) -> Tensor:
    def answered(name: str) -> Answered:
        answers = [(row["prompt_ids"], row[f"{name}_ids"]) for row in rows]
        live = torch.stack([reference_losses.answer_logps(policy, *answer) for answer in answers])
        with torch.no_grad():
            still = torch.stack([reference_losses.answer_logps(frozen, *answer) for answer in answers])
        return Answered(live, still, torch.tensor([len(answer) for _, answer in answers], dtype=torch.float64))

    names = [name for name in ("completion", "KL_completion", "chosen", "rejected") if f"{name}_ids" in rows[0]]
    return facts_of(method).loss(settings, {name: answered(name) for name in names}, rows)


@pytest.fixture
def _exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' norms compute in float32 whatever the weights are, so their rounding would be compared, too."""

    def forward(norm: Qwen2RMSNorm, states: Tensor) -> Tensor:
        return norm.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(Qwen2RMSNorm, "forward", forward)


@pytest.mark.usefixtures("_exact_norms")
@pytest.mark.parametrize(("method", "fields"), CASES)
def test_the_loss_and_its_gradients_are_the_papers(method: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    settings = config(method, tmp_path, **{"model_name": model, "beta": 0.1, "per_device_train_batch_size": 6, **fields})
    trainer = PreferenceTrainer(settings, observer=RecordingObserver())
    inner = trainer.prepare()
    moved(trainer)
    # The weights are float32's; computing with them in float64 leaves rounding out of what is compared.
    for model in (trainer.model, getattr(inner, "ref_model", None)):
        if model is not None:
            model.double()
    inner.model.train()
    batch = next(iter(inner.get_train_dataloader()))
    loss = inner.compute_loss(inner.model, inner._prepare_inputs(batch))
    loss.backward()

    policy = load_policy(settings, trainer.places.model, None, "fp32")
    policy.double()
    policy.load_state_dict(trainer.model.state_dict())
    frozen: Any = FrozenView(policy)
    if not settings.use_lora:
        frozen = load_policy(settings, trainer.places.model, None, "fp32").double()
    expected = reference_loss(method, settings, trainer.data_loader.train[:6], policy, frozen)
    expected.backward()

    # TRL's log-probabilities are float32: a unit in the last place of one, 5e-7, is 1e-6 of IPO's squared distance.
    of_loss, of_gradients = facts_of(method).ROUNDING
    assert loss.item() == pytest.approx(expected.item(), rel=of_loss)
    wanted = {name: tensor.grad for name, tensor in policy.named_parameters() if tensor.grad is not None}
    found = {name: tensor.grad.double() for name, tensor in trainer.model.named_parameters() if tensor.grad is not None}
    assert wanted.keys() == found.keys()
    error = torch.stack([(found[name] - wanted[name]).norm() for name in wanted]).norm()
    norm = torch.stack([tensor.norm() for tensor in wanted.values()]).norm()
    assert norm > 0
    assert (error / norm).item() < of_gradients
