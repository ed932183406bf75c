"""The patch embedding is a SPAD convolution; position grids resample as they should."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.layers.patch_embed import PatchEmbed, resample_position_grid
from spadnet.layers.spad_conv import spad_conv3d
from spadnet.spacing import MAX_DEGREE, depth_stride

DEGREES = range(MAX_DEGREE + 1)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("patch_size", [4, 16])
def test_matrix_product_equals_the_convolution(patch_size: int, degree: int) -> None:
    embed = PatchEmbed(2, 5, patch_size=patch_size)
    x = torch.randn(2, 2, 3 * depth_stride(patch_size, degree), 2 * patch_size, patch_size)
    expected = spad_conv3d(x, embed.proj.weight, embed.proj.bias, stride=patch_size, degree=degree)
    assert embed.grid_size(x.shape[2:], degree) == tuple(expected.shape[2:])
    tokens = embed(x, degree)
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("degree", DEGREES)
def test_some_patches_can_be_embedded_alone(degree: int) -> None:
    embed = PatchEmbed(1, 5, patch_size=4)
    x = torch.randn(2, 1, 2 * depth_stride(4, degree), 8, 8)
    some = embed.patchify(x, degree)[:, [5, 0, 3]]
    torch.testing.assert_close(embed.project(some, degree), embed(x, degree)[:, [5, 0, 3]])


@pytest.mark.parametrize("size", [(3, 16, 16), (4, 15, 16), (4, 16, 24), (0, 16, 16)])
def test_sizes_that_are_no_multiple_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"not a multiple of \(4, 16, 16\)"):
        PatchEmbed(1, 5)(torch.zeros(1, 1, *size), 2)


# --- positions ---

GRIDS = [(1, 4, 4), (2, 3, 5), (5, 10, 10)]
SIZES = [(1, 1, 1), (1, 7, 9), (2, 3, 5), (3, 4, 12), (8, 2, 10)]


def area_then_trilinear(grid: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The same by PyTorch's own resampling, one step after the other."""
    down = [min(s, t) for s, t in zip(grid.shape[2:], size, strict=True)]
    return F.interpolate(
        F.interpolate(grid, down, mode="area"), size, mode="trilinear", align_corners=False
    )


@pytest.mark.parametrize(("source", "size"), [*itertools.product(GRIDS, SIZES)])
def test_positions_are_averaged_down_then_interpolated_up(
    source: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    grid = torch.randn(1, 3, *source)
    torch.testing.assert_close(
        resample_position_grid(grid, size), area_then_trilinear(grid, size), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("source", GRIDS)
def test_own_grid_is_left_exactly_as_it_is(source: tuple[int, int, int]) -> None:
    grid = torch.randn(1, 3, *source)
    assert torch.equal(resample_position_grid(grid, source), grid)


@pytest.mark.parametrize("size", SIZES)
def test_constant_positions_stay_constant_and_averages_stay_near(
    size: tuple[int, int, int],
) -> None:
    constant = torch.full((1, 2, 5, 10, 10), 0.7)
    resampled = resample_position_grid(constant, size)
    torch.testing.assert_close(resampled, torch.full((1, 2, *size), 0.7))
    grid = torch.randn(1, 2, 5, 10, 10)
    whole = resample_position_grid(grid, (1, 1, 1))
    torch.testing.assert_close(whole.flatten(), grid.mean((2, 3, 4)).flatten())


def test_mirrored_positions_resample_to_the_mirror() -> None:
    grid = torch.randn(1, 2, 4, 7, 5)
    for size in SIZES:
        torch.testing.assert_close(
            resample_position_grid(grid.flip(2, 3, 4), size),
            resample_position_grid(grid, size).flip(2, 3, 4),
        )


def test_autocast_keeps_the_precision_of_positions() -> None:
    grid = torch.randn(1, 3, 2, 4, 4)
    expected = resample_position_grid(grid, (3, 2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample_position_grid(grid, (3, 2, 6)), expected)


def test_every_position_learns() -> None:
    for size in ((1, 4, 4), (3, 6, 6), (2, 3, 5)):
        grid = torch.randn(1, 2, 2, 5, 5, requires_grad=True)
        resample_position_grid(grid, size).sum().backward()
        assert grid.grad is not None
        assert grid.grad.gt(0).all()
