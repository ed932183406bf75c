"""U-Nets whose kernels turn with the body, and whose decoder may work on thinner slices."""

import pytest
import torch
from torch import nn

from spadnet.data.warp import turn_to_z
from spadnet.evaluate.thick_slices import turned_back
from spadnet.layers.spad_conv import SpadConv3d
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.turned import run_along
from spadnet.spacing import Spacing

MM = Spacing(1, 1, 1)
SIZE = (8, 16, 24)


def small_unet(**more: bool) -> SpadUNet:
    """Two levels, random weights."""
    torch.manual_seed(0)
    return SpadUNet(in_chans=1, num_classes=2, features=(4, 8), **more)


@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_turned_kernels_see_what_the_plain_ones_see_without_a_turn(axis: int) -> None:
    unet = small_unet(deep_supervision=True)
    x = torch.rand(1, *SIZE)
    turned, _, _ = turn_to_z(x, None, MM, axis=axis)
    for level, (found, want) in enumerate(
        zip(run_along(unet, turned[None], 0, axis=axis), unet(x[None], 0), strict=True)
    ):
        size = [n >> level for n in SIZE]
        assert torch.allclose(turned_back(found, axis=axis, size=size), want, atol=1e-4)
    if axis:
        unturned = turned_back(unet(turned[None], 0)[0], axis=axis, size=SIZE)
        assert (unturned - unet(x[None], 0)[0]).abs().max() > 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_kernels_fold_along_the_axis_of_the_slices(axis: int) -> None:
    """Kernels that are constant along the slices see averages as they see the repeated slices."""
    unet = small_unet()
    for conv in unet.modules():
        if isinstance(conv, SpadConv3d):
            kernel = conv.weight
            for tap in (0, 2):  # the middle tap alone: no neighbouring slice
                kernel.select(2 + axis, tap).zero_()
    thick = torch.rand(1, 4, 16, 16)  # z along the body's axis
    repeated = thick.repeat_interleave(2, dim=1)
    found = run_along(unet, thick[None], 1, axis=axis, out_degree=0)
    want = run_along(unet, repeated[None], 0, axis=axis)
    assert found.shape == want.shape == (1, 2, 8, 16, 16)
    assert torch.allclose(found, want, atol=1e-4)


@pytest.mark.parametrize(
    ("axis", "compiled"),
    [(0, False), (1, False), (2, False), pytest.param(2, True, marks=pytest.mark.slow)],
)
def test_gradients_are_the_same_when_maps_are_computed_again(axis: int, compiled: bool) -> None:
    """The kernels are turned in the backward pass too."""
    x, found = torch.rand(1, 1, 4, 16, 16), []
    for again in (False, True):
        unet = small_unet(deep_supervision=True).train()
        unet.set_grad_checkpointing(again)
        if compiled and again:
            torch.compiler.reset()
            unet.compile(fullgraph=True, dynamic=True, backend="eager")
        levels = run_along(unet, x, 1, axis=axis, out_degree=0)
        sum(level[:, 1].square().mean() for level in levels).backward()
        found.append([kernel.grad for kernel in unet.parameters()])
    for plain, again_grad in zip(*found, strict=True):
        assert torch.allclose(plain, again_grad, atol=1e-5)


def test_gradients_reach_turned_kernels() -> None:
    unet = small_unet()
    run_along(unet, torch.rand(1, 1, 4, 16, 16), 1, axis=2, out_degree=0).sum().backward()
    weight = unet.encoder.stages[0].blocks[0].conv.weight  # type: ignore[union-attr, index]
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape
    assert weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_decoder_on_thin_slices_gives_as_many() -> None:
    unet = small_unet()
    x = torch.rand(2, 1, 2, 16, 16)
    for degree in (1, 2, 3):
        for out_degree in range(degree + 1):
            found = unet(x, degree, out_degree=out_degree)
            assert found.shape == (2, 2, 2 << (degree - out_degree), 16, 16)
        assert torch.equal(unet(x, degree, out_degree=degree), unet(x, degree))
    with pytest.raises(ValueError, match="out_degree must be 0 to the degree 1, got 2"):
        unet(x, 1, out_degree=2)
    with pytest.raises(ValueError, match="out_degree must be 5 to the degree 5, got 0"):
        unet(x, 5, out_degree=0)
    with pytest.raises(ValueError, match="2D images have no thinner slices"):
        unet(x[:, :, 0], out_degree=0)


def test_other_models_take_volumes_as_they_are() -> None:
    class Degree(nn.Module):
        def forward(self, x: torch.Tensor, degree: int) -> torch.Tensor:
            return x + degree

    assert torch.equal(
        run_along(Degree(), torch.ones(1), 2, axis=1, out_degree=0), torch.ones(1) + 2
    )
