"""The hinge losses and the published rule of the gate."""

import pytest
import torch

from spadnet.losses.adversarial import (
    AdversarialGate,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


def test_hinge_losses_at_hand_computed_points() -> None:
    undecided = torch.zeros(2, 1, 1, 4, 4)
    assert hinge_discriminator_loss(undecided, undecided).item() == 1
    assert hinge_discriminator_loss(undecided + 1, undecided - 1).item() == 0
    assert hinge_discriminator_loss(undecided + 0.5, undecided - 3).item() == 0.25
    assert hinge_generator_loss(undecided - 3).item() == 3


def test_margin_kept_means_no_gradient_for_the_discriminator() -> None:
    real = torch.tensor([0.5, 2.0], requires_grad=True)
    fake = torch.tensor([-0.5, -2.0], requires_grad=True)
    hinge_discriminator_loss(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == [-0.25, 0.0]
    assert fake.grad.tolist() == [0.25, 0.0]


def test_gate_follows_the_published_rule() -> None:
    # Average: 0.1 * 0.9 ** n stays above 0.025 for 13 perfect steps and falls below at the 14th.
    gate = AdversarialGate()
    opened = [gate.is_open]
    for _ in range(14):
        gate.update(torch.tensor(0.0))
        opened.append(gate.is_open)
    assert opened == [False] * 14 + [True]
    assert gate.average.item() == pytest.approx(0.1 * 0.9**14)

    # One bad loss closes it at once although the average, 0.0236, is still low.
    gate.update(torch.tensor(0.03))
    assert gate.average.item() == pytest.approx(0.09 * 0.9**14 + 0.003)
    assert gate.average.item() < 0.025
    assert not gate.is_open
    gate.update(torch.tensor(0.02))
    assert gate.is_open

    # A very bad one lifts the average, which keeps the gate closed after the loss has recovered.
    gate.update(torch.tensor(1.0))
    gate.update(torch.tensor(0.0))
    assert gate.last.item() == 0
    assert gate.average.item() > 0.025
    assert not gate.is_open


def test_gate_resumes_where_it_stood() -> None:
    gate = AdversarialGate()
    for _ in range(14):
        gate.update(torch.tensor(0.01))
    gate.update(torch.tensor(0.5))
    resumed = AdversarialGate()
    resumed.load_state_dict(gate.state_dict())
    for _ in range(40):
        gate.update(torch.tensor(0.0))
        resumed.update(torch.tensor(0.0))
        assert torch.equal(gate.average, resumed.average)
        assert gate.is_open == resumed.is_open
    assert gate.is_open


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gate_survives_a_loss_that_is_not_finite(bad: float) -> None:
    gate = AdversarialGate(start=0.0)
    gate.update(torch.tensor(0.0))
    assert gate.is_open
    gate.update(torch.tensor(bad))
    assert not gate.is_open
    gate.update(torch.tensor(0.0))
    assert gate.is_open


def test_update_leaves_the_given_loss_alone() -> None:
    loss = torch.tensor(0.5, requires_grad=True)
    gate = AdversarialGate()
    gate.update(loss)
    assert loss.item() == 0.5
    assert loss.requires_grad
    assert not gate.average.requires_grad
