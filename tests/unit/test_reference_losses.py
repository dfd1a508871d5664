"""The reference losses on numbers that a reader can derive by hand."""

import math

import pytest
import torch

from tests import reference_losses


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_ipo() -> None:
    """β = 0.25, so the target is 2. Log-ratios: chosen +6 over 3 tokens = 2, rejected −2 over 2 tokens = −1: h = 3.

    Loss (3 − 2)² = 1. dLoss/d chosen = 2·(3 − 2)/3 tokens = 2/3; dLoss/d rejected = −2·(3 − 2)/2 tokens = −1.
    """
    chosen, rejected = numbers(-4), numbers(-7)
    tokens = {"chosen_tokens": numbers(3).detach(), "rejected_tokens": numbers(2).detach()}
    loss = reference_losses.ipo(chosen, rejected, numbers(-10), numbers(-5), **tokens, beta=0.25)
    loss.sum().backward()
    assert loss.item() == 1
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == (pytest.approx(2 / 3), -1)


def test_ipo_with_swapped_labels() -> None:
    """The pair of above, a quarter of its kind swapped: ¾·(3 − 2)² + ¼·(−3 − 2)² = ¾ + 25/4 = 7."""
    loss = reference_losses.ipo(numbers(-4), numbers(-7), numbers(-10), numbers(-5), numbers(3), numbers(2), 0.25, 0.25)
    assert loss.item() == 7


def test_ipo_is_zero_at_its_target() -> None:
    """h = 1/(2β) = 5."""
    assert reference_losses.ipo(numbers(-5), numbers(-9), numbers(-10), numbers(-9), numbers(1), numbers(1), 0.1).item() == 0


def test_cpo() -> None:
    """β = 1 and Δ = ln 3, so σ(βΔ) = 3/4 and the preference term is ln(4/3); NLL is 2 ln 3 over 2 tokens = ln 3, α = ½.

    The sum is ln(4/3) + ½ ln 3 = ln(4/√3). d/d chosen = −(1 − 3/4) − ½/2 = −½; d/d rejected = ¼.
    """
    chosen, rejected = numbers(-2 * math.log(3)), numbers(-3 * math.log(3))
    loss = reference_losses.cpo(chosen, rejected, numbers(2).detach(), beta=1, alpha=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4 / math.sqrt(3)))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == (pytest.approx(-0.5), pytest.approx(0.25))


def test_cpo_with_swapped_labels_and_as_hinge() -> None:
    """σ = 3/4 again. A third swapped: ⅔ ln(4/3) + ⅓ ln 4. Hinge with βΔ = ¼: 1 − ¼; with βΔ = 2: 0."""
    swapped = reference_losses.cpo(numbers(0), numbers(-math.log(3)), numbers(1), beta=1, alpha=0, flipped=1 / 3)
    assert swapped.item() == pytest.approx(2 / 3 * math.log(4 / 3) + math.log(4) / 3)
    hinge = reference_losses.cpo(numbers(0, 0), numbers(-0.5, -4), numbers(1, 1), beta=0.5, alpha=0, hinge=True)
    assert hinge.item() == pytest.approx((0.75 + 0) / 2)


def test_kto() -> None:
    """Mismatched log-ratios ln 9 and −ln 3: z0 = ½ ln 3. β = 2, λ_D = 1, λ_U = 3.

    Desirable, r = ln 3: σ(2·(ln 3 − ½ ln 3)) = σ(ln 3) = ¾, loss ¼, gradient −β·¾·¼ = −3/8.
    Undesirable, r = ½ ln 3: σ(0) = ½, loss 3·½, gradient 3·2·¼ = 3/2.
    """
    logps = numbers(-1 + math.log(3), -1 + math.log(3) / 2)
    kl = numbers(math.log(9), -math.log(3))
    labels = torch.tensor([True, False])
    losses = reference_losses.kto(logps, numbers(-1, -1), kl, numbers(0, 0), labels, beta=2, lambda_d=1, lambda_u=3)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.25, 1.5])
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-3 / 8, 3 / 2])
    assert kl.grad is None, "no gradient flows through z0"


def test_kto_never_has_a_negative_z0() -> None:
    """Mismatched log-ratios of −5 give z0 = 0: an untouched desirable row costs ½."""
    losses = reference_losses.kto(numbers(-1), numbers(-1), numbers(-5), numbers(0), torch.tensor([True]), 0.1, 1, 1)
    assert losses.item() == 0.5


def test_margins_and_their_accuracy() -> None:
    """β = ½. Gains of the chosen answers: 3, 2, 1; of the rejected: 1, 2, 2. Margins 1, 0, −½: (1 + ½ + 0)/3 = ½.

    A token, with chosen answers of 6, 2, 1 and rejected ones of 1, 2, 4 tokens: ½ − 1, 1 − 1, 1 − ½, halved.
    """
    given = numbers(-1, -2, -3), numbers(-4, -3, -3), numbers(-4, -4, -4), numbers(-5, -5, -5)
    summed = reference_losses.margins(*given, beta=0.5)
    assert summed.tolist() == [1, 0, -0.5]
    assert reference_losses.margin_accuracy(summed) == 0.5
    averaged = reference_losses.margins(*given, beta=0.5, lengths=(numbers(6, 2, 1), numbers(1, 2, 4)))
    assert averaged.tolist() == [-0.25, 0, 0.25]
    assert reference_losses.margin_accuracy(averaged[:2]) == 0.25
