"""Laws of the loss of masked autoencoding."""

import pytest
import torch

from spadnet.losses.pixels import normalised_patches, pixel_loss


def test_predicting_the_mean_gives_one() -> None:
    patches = torch.rand(2, 5, 256)
    assert pixel_loss(torch.zeros_like(patches), patches).item() == pytest.approx(1, abs=1e-3)


def test_the_normalised_patch_itself_gives_zero() -> None:
    patches = torch.rand(2, 5, 256)
    assert pixel_loss(normalised_patches(patches), patches) == 0


def test_brightness_and_contrast_of_a_patch_mean_nothing() -> None:
    patches, predicted = torch.rand(2, 5, 256), torch.randn(2, 5, 256)
    scale, shift = torch.rand(2, 5, 1) + 0.5, torch.rand(2, 5, 1)
    torch.testing.assert_close(
        pixel_loss(predicted, scale * patches + shift),
        pixel_loss(predicted, patches),
        rtol=1e-3,
        atol=0,
    )


def test_a_patch_counts_the_same_whatever_its_size() -> None:
    patches, predicted = torch.rand(2, 5, 64), torch.randn(2, 5, 64)
    torch.testing.assert_close(
        pixel_loss(predicted.repeat(1, 1, 4), patches.repeat(1, 1, 4)),
        pixel_loss(predicted, patches),
    )


def test_flat_patches_are_finite_and_ask_for_nothing() -> None:
    patches = torch.full((1, 2, 16), 0.3)
    predicted = torch.zeros(1, 2, 16, requires_grad=True)
    loss = pixel_loss(predicted, patches)
    loss.backward()
    assert loss < 1e-6
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_no_gradient_reaches_the_image() -> None:
    patches = torch.rand(1, 2, 16, requires_grad=True)
    pixel_loss(torch.randn(1, 2, 16, requires_grad=True), patches).backward()
    assert patches.grad is None


def test_low_precision_is_computed_in_float32() -> None:
    patches = torch.rand(1, 2, 16)
    assert pixel_loss(torch.zeros(1, 2, 16, dtype=torch.bfloat16), patches).dtype == torch.float32


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="differ"):
        pixel_loss(torch.zeros(1, 2, 16), torch.zeros(1, 2, 15))
