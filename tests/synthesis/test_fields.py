"""Laws of smooth random fields."""

import math

import pytest
import torch

from spadnet.synthesis.fields import (
    Grid,
    gaussian_basis,
    keys_basis,
    node_grid,
    normal,
    sample_generators,
    separable,
    separable_rows,
    spline_basis,
    uniform,
)


def test_streams_and_near_seeds_are_unrelated():
    draws = [
        normal(sample_generators([seed], stream=stream), 4096, device="cpu")[0]
        for seed, stream in ((0, 0), (0, 1), (1, 0), (1, 1), (-1, 0), (2**62, 0))
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.08


def test_uniform_stays_between():
    values = uniform(sample_generators(range(3), stream=0), 100, between=(2.0, 3.0), device="cpu")
    assert values.shape == (3, 100)
    assert values.min() >= 2
    assert values.max() <= 3


@pytest.mark.parametrize("cell", [1.5, 4.0, 100.0])
def test_spline_field_has_unit_variance_everywhere(cell):
    grid = Grid(0.5, 1.0, 20)
    basis = spline_basis(grid, nodes=node_grid((0.0, 20.0), cell), device="cpu")
    torch.testing.assert_close(basis.square().sum(1), torch.ones(20))


def test_field_is_the_same_at_the_same_place_whatever_the_voxels():
    nodes = node_grid((0.0, 32.0), 4.0)
    fine = spline_basis(Grid(0.5, 1.0, 32), nodes=nodes, device="cpu")
    coarse = spline_basis(Grid(1.5, 2.0, 15), nodes=nodes, device="cpu")
    torch.testing.assert_close(fine[1:30:2], coarse)


def test_keys_interpolation_keeps_quadratics():
    nodes, grid = Grid(-2.0, 2.0, 14), Grid(0.25, 0.5, 40)
    basis = keys_basis(grid, nodes=nodes, device="cpu")
    torch.testing.assert_close(
        basis @ nodes.places.float().square(), grid.places.float().square(), atol=1e-3, rtol=1e-4
    )


def test_keys_interpolation_to_the_nodes_themselves_is_left_out():
    assert keys_basis(Grid(0, 1, 5), nodes=Grid(0, 1, 5), device="cpu") is None


def test_gaussian_field_decorrelates_within_its_width():
    grid, nodes = Grid(0.5, 1.0, 64), node_grid((0.0, 64.0), 4.0)
    narrow, wide = gaussian_basis(grid, nodes=nodes, fwhm=torch.tensor([8.0, 32.0]), device="cpu")
    lag = 12
    for basis, low, high in ((narrow, 0.0, 0.3), (wide, 0.6, 1.0)):
        correlation = (basis[20] * basis[20 + lag]).sum()
        assert low <= correlation <= high
        assert math.isclose(basis[20].square().sum(), 1, rel_tol=1e-5)


def test_separable_is_the_sum_over_all_nodes():
    values = torch.randn(2, 3, 4, 5)
    bases = [torch.randn(6, 3), torch.randn(2, 7, 4), torch.randn(8, 5)]
    expected = torch.einsum("bdhw,zd,byh,xw->bzyx", values, *bases)
    torch.testing.assert_close(separable(values, bases), expected, atol=1e-4, rtol=1e-4)
    rows = slice(2, 4)
    torch.testing.assert_close(
        separable_rows(values, bases, rows=rows), expected[:, rows], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        separable_rows(values, [None, None, None], rows=slice(0, 1)), values[:, :1]
    )
