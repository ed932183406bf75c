"""Laws of cutting held-out images: sizes fit, windows cover, blocks have their mean."""

import pytest
import torch

from spadnet.evaluate.held_out import (
    block_means,
    cut_window,
    evaluating,
    fit_to_multiple,
    token_grid,
    window_size,
    window_starts,
)
from spadnet.spacing import required_multiple


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 16, 40), (37, 15, 33)])
def test_fitted_sizes_are_multiples_and_crop_about_the_centre(
    degree: int, size: tuple[int, int, int]
) -> None:
    volume = torch.rand(2, *size)
    fitted = fit_to_multiple(volume, degree)
    for got, given, step in zip(
        fitted.shape[1:], size, required_multiple(degree, stride=16), strict=True
    ):
        assert got % step == 0
        assert got == max(given // step, 1) * step
    assert torch.equal(fit_to_multiple(fitted, degree), fitted)
    assert set(fitted.flatten().tolist()) <= set(volume.flatten().tolist())


def test_thin_axis_repeats_its_edges_and_wide_axis_keeps_its_middle() -> None:
    volume = torch.arange(34.0).view(1, 1, 1, 34).repeat(1, 1, 14, 1)
    volume[0, 0, 0] += 100
    fitted = fit_to_multiple(volume, 5)
    assert fitted.shape == (1, 1, 16, 32)
    assert torch.equal(fitted[0, 0, 8], torch.arange(1.0, 33.0))
    assert torch.equal(fitted[0, 0, :2], torch.arange(101.0, 133.0).repeat(2, 1))


@pytest.mark.parametrize("shape", [(1, 0, 4, 4), (4, 4, 4)])
def test_an_empty_volume_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no empty axis"):
        fit_to_multiple(torch.zeros(shape), 0)


@pytest.mark.parametrize("degree", [0, 2, 5])
def test_block_means_are_constant_blocks_and_repeat_themselves(degree: int) -> None:
    depth = required_multiple(degree)[0]
    image = torch.rand(1, 2, 2 * depth, 32, 48)
    means = block_means(image, degree)
    assert means.shape == image.shape
    block = means[0, 1, depth:, 16:, 32:]
    expected = image[0, 1, depth:, 16:, 32:].mean()
    assert torch.allclose(block, expected.expand_as(block))
    assert torch.allclose(block_means(means, degree), means, atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 7, 9), (5, 4, 10)])
@pytest.mark.parametrize("window", [(1, 4, 4), (4, 4, 4), (3, 16, 2)])
def test_windows_cover_every_token_and_stay_inside(
    grid: tuple[int, int, int], window: tuple[int, int, int]
) -> None:
    size = window_size(window, grid, degree=0)
    times = torch.zeros(grid, dtype=torch.int)
    starts = window_starts(grid, size)
    for start in starts:
        part = times[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        assert part.shape == size
        part += 1
    assert times.min() >= 1
    assert len(set(starts)) == len(starts)
    if all(whole % length == 0 for whole, length in zip(grid, size, strict=True)):
        assert times.max() == 1


def test_windows_may_depend_on_the_degree() -> None:
    assert window_size({0: (4, 4, 4), 5: (1, 8, 8)}, (1, 6, 20), degree=5) == (1, 6, 8)
    with pytest.raises(ValueError, match="no window for degree 3"):
        window_size({0: (4, 4, 4)}, (1, 6, 20), degree=3)
    with pytest.raises(ValueError, match=r"\(0, 4, 4\)"):
        window_size((0, 4, 4), (1, 6, 20), degree=3)


def test_cut_windows_reassemble_the_image() -> None:
    image = torch.rand(1, 1, 8, 32, 48)
    grid = token_grid(image, degree=2)
    assert grid == (2, 2, 3)
    rebuilt = torch.zeros_like(image)
    for start in window_starts(grid, (1, 1, 2)):
        cut = cut_window(image, start, (1, 1, 2), degree=2)
        assert cut.shape == (1, 1, 4, 16, 32)
        cut_window(rebuilt, start, (1, 1, 2), degree=2).copy_(cut)
    assert torch.equal(rebuilt, image)


def test_evaluating_gives_every_module_its_mode_back() -> None:
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2))
    net[0].eval()
    modes = []
    with pytest.raises(ValueError, match="on purpose"), evaluating(net):
        raise ValueError("on purpose")
    with evaluating(net):
        modes.append((net.training or net[1].training, torch.is_grad_enabled()))
    assert modes == [(False, False)]
    assert net.training
    assert not net[0].training
    assert torch.is_grad_enabled()
