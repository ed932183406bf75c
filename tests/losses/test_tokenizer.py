"""Laws of the tokenizer's losses."""

import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from spadnet.losses.adversarial import AdversarialGate
from spadnet.losses.multiscale import MultiscalePerceptual
from spadnet.losses.tokenizer import (
    TokenizerLoss,
    entropy_loss,
    mean_probability,
    prior_loss,
    reconstruction_loss,
)


def test_reconstruction_loss_is_the_norm_of_the_difference() -> None:
    x, y = torch.rand(2, 1, 3, 4, 4), torch.rand(2, 1, 3, 4, 4)
    assert torch.allclose(reconstruction_loss(x, y), (x - y).abs().mean())
    assert torch.allclose(reconstruction_loss(x, y, kind="l2"), (x - y).square().mean())
    with pytest.raises(ValueError, match="l3"):
        reconstruction_loss(x, y, kind="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="differ"):
        reconstruction_loss(x, y[:1])  # would broadcast


@pytest.mark.parametrize("codebook_size", [2, 128, 1024])
def test_prior_is_smallest_for_uniform_use_only(codebook_size: int) -> None:
    uniform = torch.full((codebook_size,), 1 / codebook_size)
    minimum = -math.log(codebook_size)
    assert prior_loss(uniform).item() == pytest.approx(minimum, rel=1e-5)
    for scale in (0.1, 1.0, 10.0):
        other = torch.softmax(scale * torch.randn(codebook_size), 0)
        assert minimum + 1e-5 < prior_loss(other).item() <= 1e-6
    one_hot = torch.eye(codebook_size)[0]
    assert prior_loss(one_hot).item() == 0


def test_prior_pulls_towards_uniform_even_from_dead_codes() -> None:
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    prior_loss(p).backward()
    assert p.grad is not None
    assert p.grad.isfinite().all()
    assert (p.grad[2:] < p.grad[:2]).all()  # descent raises the dead codes


def test_entropy_spans_zero_to_log_of_the_codebook_size() -> None:
    one_hot = 1e4 * torch.eye(16)[torch.arange(8) % 16]
    assert entropy_loss(one_hot).item() == 0
    assert entropy_loss(torch.zeros(2, 3, 16)).item() == pytest.approx(math.log(16), rel=1e-6)
    logits = torch.randn(2, 5, 16)
    p = logits.double().softmax(-1)
    assert entropy_loss(logits).item() == pytest.approx(-(p * p.log()).sum(-1).mean().item())


def test_entropy_is_safe_with_codes_ruled_out() -> None:
    logits = torch.randn(4, 8)
    logits[:, 5:] = -torch.inf
    logits.requires_grad_()
    loss = entropy_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(entropy_loss(logits[:, :5]).item(), rel=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[:, :5].abs().sum() > 0


def test_entropy_works_in_float32_for_half_precision_logits() -> None:
    logits = (20 * torch.randn(64, 512)).bfloat16()
    assert entropy_loss(logits).dtype == torch.float32
    assert torch.equal(entropy_loss(logits), entropy_loss(logits.float()))


def test_mean_probability_averages_over_batch_and_positions() -> None:
    probs = torch.randn(2, 3, 4, 4, 6).softmax(-1)
    assert torch.allclose(mean_probability(probs), probs.mean((0, 1, 2, 3)))


def test_terms_add_up_with_their_weights() -> None:
    loss = TokenizerLoss(
        perceptual=MultiscalePerceptual(),
        kind="l2",
        reconstruction_weight=100.0,
        perceptual_weight=0.5,
        prior_weight=0.1,
        entropy_weight=0.07,
        adversarial_weight=3e-3,
    )
    image = torch.rand(2, 1, 4, 16, 16)
    rebuilt = (image + 0.1 * torch.randn_like(image)).requires_grad_()
    logits = torch.randn(2, 1, 2, 2, 32, requires_grad=True)
    terms = loss(
        rebuilt,
        image,
        logits,
        degree=2,
        quantizer_losses={"commitment": torch.tensor(0.25)},
        adversarial=rebuilt.mean(),
    )
    expected = (
        100 * terms.reconstruction
        + 0.5 * terms.perceptual
        + 0.1 * terms.prior
        + 0.07 * terms.entropy
        + 0.25
        + 3e-3 * terms.adversarial
    )
    assert torch.allclose(terms.total, expected)
    assert terms.mutual_information.item() >= 0  # entropy is concave
    terms.total.backward()
    assert rebuilt.grad is not None
    assert rebuilt.grad.abs().sum() > 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_terms_without_quantizer_perceptual_and_adversary_are_zero() -> None:
    image = torch.rand(1, 1, 1, 16, 16)
    terms = TokenizerLoss()(image + 0.5, image, None, degree=5)
    assert terms.total.item() == pytest.approx(0.5)
    assert [t.item() for t in terms[2:]] == [0.0] * 5


def test_weight_zero_still_reports_and_gives_no_gradient() -> None:
    loss = TokenizerLoss(prior_weight=0.0, entropy_weight=0.0)
    image = torch.rand(1, 1, 1, 16, 16, requires_grad=True)
    logits = torch.randn(1, 1, 1, 1, 8, requires_grad=True)
    terms = loss(image, image.detach(), logits, degree=5)
    assert terms.prior.item() < 0 < terms.entropy.item()
    terms.total.backward()
    assert logits.grad is None


def sum_over_two_ranks(rank: int, rendezvous: str) -> None:
    """Check, as one of two ranks, that both see what one process with all data would see."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
        scale = torch.ones(5, requires_grad=True)
        rows = logits[:4] if rank == 0 else logits[4:]  # ranks of different sizes
        loss = prior_loss(mean_probability((rows * scale).softmax(-1)))
        (gradient,) = torch.autograd.grad(loss, scale)
        dist.all_reduce(gradient)
        gate = AdversarialGate()
        gate.update(torch.tensor(0.2 if rank == 0 else 0.4))
    finally:
        dist.destroy_process_group()

    expected = prior_loss(mean_probability((logits * scale).softmax(-1)))
    (whole,) = torch.autograd.grad(expected, scale)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient / 2, whole)  # DDP takes the mean over ranks
    torch.testing.assert_close(gate.last, torch.tensor(0.3))
    torch.testing.assert_close(gate.average, torch.tensor(0.12))


def test_two_ranks_see_one_distribution_and_one_gate(tmp_path: Path) -> None:
    rendezvous = str(tmp_path / "rendezvous")
    command = [sys.executable, __file__, rendezvous]  # the other rank; this process is one itself
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:
        try:
            sum_over_two_ranks(0, rendezvous)
        finally:
            errors = other.communicate(timeout=120)[1]
    assert other.returncode == 0, errors


if __name__ == "__main__":
    sum_over_two_ranks(1, sys.argv[1])
