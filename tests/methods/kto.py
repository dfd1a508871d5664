"""KTO, arXiv:2402.01306, and its variant without a KL estimate, APO-zero, arXiv:2408.06266."""

from typing import Any

import torch
from torch import Tensor

from tests import reference_losses
from tests.conftest import DATA
from tests.methods import Answered

CASES: list[dict[str, Any]] = [
    {"desirable_weight": 1.3, "undesirable_weight": 0.7},
    {"use_lora": False, "beta": 0.05},
    {"use_confidence": True, "dataset_path": str(DATA / "kto_extended.jsonl")},
    {"loss_type": "apo_zero_unpaired", "desirable_weight": 1.3},
    {"loss_type": "apo_zero_unpaired", "use_lora": False},
]
ROUNDING = (2e-6, 1e-6)
METRICS: list[dict[str, Any]] = [
    {"desirable_weight": 1.2, "undesirable_weight": 0.9, "beta": 0.3},
    {"use_confidence": True, "dataset_path": str(DATA / "kto_extended.jsonl")},
    {"dataset_path": str(DATA / "pairs_train.jsonl")},
    {"loss_type": "apo_zero_unpaired", "undesirable_weight": 0.9, "dataset_path": str(DATA / "pairs_train.jsonl")},
]
BETA = 0.1
METADATA = {"desirable_weight": 1.0, "undesirable_weight": 1.0, "use_ref_model": True}
ARGUMENTS = {"desirable_weight": 1.0, "undesirable_weight": 1.0}


def loss(settings: Any, answers: dict[str, Answered], rows: list[dict[str, Any]]) -> Tensor:
    own = answers["completion"]
    labels = torch.tensor([row["label"] for row in rows])
    weights = (settings.beta, settings.desirable_weight, settings.undesirable_weight)
    confidence = torch.tensor([row.get("confidence", 1) if settings.use_confidence else 1 for row in rows])
    # Eq. 7 of the APO paper is eq. 7 of KTO's with z0 = 0, as mismatched answers that did not move would give.
    still = torch.zeros(1, dtype=torch.float64)
    partners = answers["KL_completion"] if settings.loss_type == "kto" else Answered(still, still, still)
    found = reference_losses.kto(own.logps, own.ref_logps, partners.logps, partners.ref_logps, labels, *weights)
    return (confidence * found).mean()


def stock() -> tuple[Any, Any, dict[str, Any]]:
    from trl import KTOConfig, KTOTrainer

    return KTOTrainer, KTOConfig, {}
