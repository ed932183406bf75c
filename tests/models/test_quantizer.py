"""Three ways to choose codes: soft mixtures, gumbel samples, nearest codes."""

import math

import pytest
import torch
from torch import Tensor

from spadnet.models.quantizer import (
    NearestQuantizer,
    SoftQuantizer,
    build_quantizer,
    cosine_temperature,
)

CODES, WIDTH = 7, 4


def latents(batch: int = 2) -> Tensor:
    """Random latents, [B, C, d, h, w]."""
    return torch.randn(batch, WIDTH, 2, 3, 5)


def generator(seed: int) -> torch.Generator:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["soft", "gumbel", "nearest"])
@pytest.mark.parametrize("norm_latent", [False, True])
def test_all_kinds_share_one_form(kind: str, norm_latent: bool) -> None:
    quantizer = build_quantizer(kind, CODES, WIDTH, norm_latent=norm_latent).eval()
    z = latents()
    output = quantizer(z)
    assert output.quantized.shape == z.shape
    assert output.logits.shape == (2, 2, 3, 5, CODES)
    assert torch.equal(output.index, output.logits.argmax(-1))
    assert torch.equal(quantizer.logits(z), output.logits)
    assert quantizer.codebook_size == CODES
    hard = quantizer.lookup(output.index)
    one_hot = torch.nn.functional.one_hot(output.index, CODES).float()
    torch.testing.assert_close(quantizer.mix(one_hot), hard)
    if kind == "nearest":
        torch.testing.assert_close(output.quantized, hard)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'hard'"):
        build_quantizer("hard", CODES, WIDTH)
    with pytest.raises(ValueError, match="4 and 6"):
        build_quantizer("nearest", CODES, WIDTH, latent_dim=6)


# --- soft ---


def test_soft_tokens_are_the_expected_code() -> None:
    quantizer = SoftQuantizer(CODES, WIDTH)
    z = latents()
    output = quantizer(z)
    p = quantizer.proj(z[1, :, 1, 2, 3]).softmax(-1)
    torch.testing.assert_close(output.quantized[1, :, 1, 2, 3], p @ quantizer.codebook)
    assert output.losses == {}


def test_codes_may_be_of_another_width_than_latents() -> None:
    quantizer = build_quantizer("soft", CODES, 6, latent_dim=WIDTH, norm_latent=True)
    assert quantizer(latents()).quantized.shape == (2, 6, 2, 3, 5)


def test_start_from_centres_chooses_the_nearest_one() -> None:
    quantizer, z = SoftQuantizer(CODES, WIDTH), latents()
    centres = torch.randn(CODES, WIDTH)
    quantizer.start_from(centres, temperature=0.5)
    distance = torch.cdist(z.movedim(1, -1), centres)
    output = quantizer(z)
    assert torch.equal(output.index, distance.argmin(-1))
    torch.testing.assert_close(
        output.logits.softmax(-1), (-distance.square() / 0.5).softmax(-1), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(quantizer.codebook, centres)


def test_start_sharpness_is_the_temperature() -> None:
    entropies = []
    centres = torch.randn(CODES, WIDTH)
    for temperature in (0.1, 1.0, 10.0):
        quantizer = SoftQuantizer(CODES, WIDTH)
        quantizer.start_from(centres, temperature=temperature)
        p = quantizer.logits(torch.randn(1, WIDTH, 4, 4, 4, generator=generator(0))).softmax(-1)
        entropies.append(torch.special.entr(p).sum(-1).mean().item())
    assert entropies == sorted(entropies)
    assert entropies[-1] < math.log(CODES)


# --- gumbel ---


def test_gumbel_is_soft_outside_training() -> None:
    z = latents()
    gumbel = SoftQuantizer(CODES, WIDTH, gumbel=True).eval()
    soft = SoftQuantizer(CODES, WIDTH)
    soft.load_state_dict(gumbel.state_dict())
    assert torch.equal(gumbel(z, temperature=0.1).quantized, soft(z).quantized)


def test_gumbel_samples_follow_the_softmax() -> None:
    quantizer = SoftQuantizer(3, WIDTH, gumbel=True, hard=True).train()
    z = torch.randn(1, WIDTH, 1, 1, 1).expand(1, WIDTH, 20, 50, 50)
    with torch.no_grad():
        sample = quantizer(z, temperature=0.7, generator=generator(0)).quantized
        chosen = torch.cdist(sample.movedim(1, -1).reshape(-1, WIDTH), quantizer.codebook)
        assert chosen.amin(-1).max() < 1e-3  # a sample is a code
        share = chosen.argmin(-1).bincount(minlength=3) / chosen.shape[0]
        expected = quantizer.logits(z)[0, 0, 0, 0].softmax(-1)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.01)


def test_gumbel_sharpens_as_the_temperature_falls() -> None:
    quantizer, z = SoftQuantizer(CODES, WIDTH, gumbel=True).train(), latents()
    soft = quantizer(z, temperature=5.0, generator=generator(0)).quantized
    sharp = quantizer(z, temperature=1e-6, generator=generator(0)).quantized
    distance = torch.cdist(sharp.movedim(1, -1).reshape(-1, WIDTH), quantizer.codebook)
    torch.testing.assert_close(distance.amin(-1), torch.zeros(60), rtol=0, atol=1e-3)
    assert soft.var() < sharp.var()


@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_noise_is_seeded_and_gradients_flow(hard: bool) -> None:
    quantizer, z = SoftQuantizer(CODES, WIDTH, gumbel=True, hard=hard).train(), latents()
    z.requires_grad_()
    first = quantizer(z, generator=generator(1)).quantized
    assert torch.equal(first, quantizer(z, generator=generator(1)).quantized)
    assert not torch.equal(first, quantizer(z, generator=generator(2)).quantized)
    (first * torch.randn_like(first)).sum().backward()
    assert z.grad is not None
    for tensor in (z.grad, quantizer.proj.weight.grad, quantizer.codebook.grad):
        assert tensor is not None
        assert tensor.abs().sum() > 0


def test_temperature_falls_along_half_a_cosine() -> None:
    values = [cosine_temperature(step / 20) for step in range(21)]
    assert values[0] == pytest.approx(0.9)
    assert values[10] == pytest.approx(0.45, abs=1e-5)
    assert values[-1] == pytest.approx(1e-6)
    assert values == sorted(values, reverse=True)
    assert cosine_temperature(-1) == values[0]
    assert cosine_temperature(2) == values[-1]


# --- nearest ---


def test_nearest_code_is_chosen() -> None:
    quantizer, z = NearestQuantizer(CODES, WIDTH).eval(), latents()
    output = quantizer(z)
    distance = torch.cdist(z.movedim(1, -1), quantizer.codebook)
    assert torch.equal(output.index, distance.argmin(-1))
    torch.testing.assert_close(output.logits, -distance.square(), rtol=1e-4, atol=1e-4)


def test_gradient_passes_straight_through() -> None:
    quantizer, z = NearestQuantizer(CODES, WIDTH).eval(), latents().requires_grad_()
    gradient = torch.randn_like(z)
    quantizer(z).quantized.backward(gradient)
    assert torch.equal(z.grad, gradient)


def test_commitment_pulls_latents_to_their_code() -> None:
    quantizer, z = NearestQuantizer(CODES, WIDTH).eval(), latents().requires_grad_()
    output = quantizer(z)
    loss = output.losses["commitment"]
    code = quantizer.lookup(output.index)
    torch.testing.assert_close(loss, 0.25 * (z - code).square().mean())
    loss.backward()
    assert ((z.grad * (z - code)) >= 0).all()


def test_training_leaves_evaluation_alone() -> None:
    quantizer, z = NearestQuantizer(CODES, WIDTH).eval(), latents()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(z)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name])
    quantizer.train()(z)
    assert not torch.equal(quantizer.codebook, before["codebook"])


def test_codes_move_to_the_mean_of_their_latents() -> None:
    quantizer = NearestQuantizer(2, WIDTH, decay=0.5).train()
    centres = torch.stack((torch.full((WIDTH,), 3.0), torch.full((WIDTH,), -3.0)))
    quantizer.start_from(centres + 0.5, temperature=1.0)
    spread = 0.1 * torch.randn(64, WIDTH)
    spread = spread - spread.mean(0)
    z = (centres[:, None] + spread).flatten(0, 1).t().reshape(1, WIDTH, 2, 8, 8)
    for _ in range(20):
        quantizer(z)
    torch.testing.assert_close(quantizer.codebook, centres, rtol=0, atol=1e-3)
    torch.testing.assert_close(quantizer.usage, torch.full((2,), 64.0), rtol=1e-3, atol=0)


def test_dead_codes_are_revived_on_latents_of_the_batch() -> None:
    quantizer = NearestQuantizer(4, WIDTH, decay=0.5).train()
    z = latents()
    centres = torch.zeros(4, WIDTH)
    centres[1:] = 1e3  # far from every latent: never chosen
    quantizer.start_from(centres, temperature=1.0)
    for step in range(8):
        quantizer(z, generator=generator(step))
    distance = torch.cdist(quantizer.codebook, z.movedim(1, -1).reshape(-1, WIDTH))
    assert distance.amin(1).max() < 10
    assert quantizer(z).index.unique().numel() == 4


def test_logits_can_be_differentiated_while_the_codebook_moves() -> None:
    quantizer, z = NearestQuantizer(CODES, WIDTH).train(), latents().requires_grad_()
    output = quantizer(z)
    (output.logits.softmax(-1).square().sum() + output.quantized.sum()).backward()
    assert z.grad.isfinite().all()


def test_start_from_sets_what_the_averages_continue_from() -> None:
    quantizer, centres = NearestQuantizer(CODES, WIDTH), torch.randn(CODES, WIDTH)
    quantizer.start_from(centres, temperature=1.0)
    torch.testing.assert_close(quantizer.latent_sum / quantizer.usage[:, None], centres)
    assert torch.equal(quantizer.codebook, centres)
