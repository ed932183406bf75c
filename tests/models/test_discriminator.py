"""The patch discriminator works at every degree."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model

from spadnet.losses.adversarial import hinge_discriminator_loss, hinge_generator_loss
from spadnet.models.discriminator import SpadDiscriminator

DEGREES = range(6)


def tiny(*, in_chans: int = 1, use_spectral_norm: bool = False) -> SpadDiscriminator:
    """A discriminator of stride 8 with few channels."""
    return SpadDiscriminator(in_chans, (8, 16, 16), use_spectral_norm=use_spectral_norm)


@pytest.mark.parametrize("degree", DEGREES)
def test_shape_and_backward_at_every_degree(degree: int) -> None:
    depth = max(16 >> degree, 1)
    model = tiny(in_chans=2)
    logits = model(torch.rand(2, 2, depth, 32, 24), degree)
    assert logits.shape == (2, 1, depth // max(8 >> degree, 1), 4, 3)
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_compiles_to_one_graph() -> None:
    model, degree = tiny(), 1
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    x = torch.rand(1, 1, 8, 32, 32)
    torch.testing.assert_close(compiled(x, degree), model(x, degree))


def test_save_and_load(tmp_path: Path) -> None:
    model, other = tiny(use_spectral_norm=True).eval(), tiny(use_spectral_norm=True).eval()
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, tmp_path / "model.safetensors")
    x = torch.rand(1, 1, 4, 32, 32)
    assert torch.equal(model(x, 2), other(x, 2))


def test_spectral_norm_bounds_every_convolution() -> None:
    model = tiny(use_spectral_norm=True).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
        for _ in range(20):  # each call in training refines the estimate of the norm
            model(torch.rand(1, 1, 1, 16, 16), 5)
    model.eval()
    for conv in (*(block.conv for block in model.blocks), model.head):
        norm = torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
        assert norm.item() == pytest.approx(1, rel=0.05)


def test_it_learns_to_tell_two_kinds_of_image_apart() -> None:
    model = tiny()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    real = torch.rand(4, 1, 1, 32, 32)
    fake = torch.nn.functional.avg_pool3d(real, (1, 3, 3), 1, (0, 1, 1))
    for _ in range(30):
        loss = hinge_discriminator_loss(model(real, 5), model(fake, 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    fake.requires_grad_()
    hinge_generator_loss(model(fake, 5)).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 1 channels, got 3"):
        tiny()(torch.rand(1, 3, 1, 32, 32), 5)
    with pytest.raises(ValueError, match="multiples of 8"):
        SpadDiscriminator(1, (8, 12))
