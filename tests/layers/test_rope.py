"""Laws of 3D rotary positions, and the table that explains their bases and exponents."""

import math

import pytest
import torch
from torch import Tensor

from spadnet.layers.rope import RotaryEmbedding3d, rotary_angles, rotate


def turned(x: Tensor, grid: tuple[int, int, int], **arguments: object) -> Tensor:
    """Rotate [..., L, d] by the angles of a grid."""
    angles = rotary_angles(grid, x.shape[-1], **arguments)  # type: ignore[arg-type]
    return rotate(x, angles.cos(), angles.sin())


def eva02_rotation(x: Tensor, height: int, width: int, *, positions: int | None = None) -> Tensor:
    """2D rotary embedding of EVA-02 by complex numbers: [H * W, d].

    Pair j of the first half turns by ``y * 10000 ** (-4 j / d)``, of the second half by x.
    """
    num_pairs = x.shape[-1] // 4
    out = torch.empty_like(x)
    for y in range(height):
        for column in range(width):
            for pair in range(2 * num_pairs):
                place = y if pair < num_pairs else column
                if positions is not None:
                    place = place * positions / (height if pair < num_pairs else width)
                angle = place * 10000 ** (-4 * (pair % num_pairs) / x.shape[-1])
                token = y * width + column
                value = complex(*x[token, 2 * pair : 2 * pair + 2].tolist())
                value *= complex(math.cos(angle), math.sin(angle))
                out[token, 2 * pair], out[token, 2 * pair + 1] = value.real, value.imag
    return out


@pytest.mark.parametrize("head_dim", [8, 64])
def test_one_slice_is_the_2d_embedding(head_dim: int) -> None:
    x = torch.randn(3 * 5, head_dim)
    torch.testing.assert_close(turned(x, (1, 3, 5)), eva02_rotation(x, 3, 5))


def test_rescaled_slice_is_the_2d_embedding_at_another_size() -> None:
    x = torch.randn(4 * 6, 16)
    expected = eva02_rotation(x, 4, 6, positions=16)
    torch.testing.assert_close(turned(x, (1, 4, 6), rescale=(-1, 16, 16)), expected)


def test_products_depend_on_differences_of_positions_alone() -> None:
    grid, head_dim = (3, 4, 5), 16
    q, k = torch.randn(2, head_dim)
    length = math.prod(grid)
    product = turned(q.expand(length, -1), grid) @ turned(k.expand(length, -1), grid).t()
    product = product.view(*grid, *grid)
    by_difference: dict[tuple[int, ...], float] = {}
    places = torch.cartesian_prod(*map(torch.arange, grid)).tolist()
    for a in places:
        for b in places:
            difference = tuple(i - j for i, j in zip(a, b, strict=True))
            value = product[tuple(a + b)].item()
            assert by_difference.setdefault(difference, value) == pytest.approx(value, abs=2e-5)
    # ... and on every one of them: none is ignored.
    distinct = {round(value, 5) for value in by_difference.values()}
    assert len(distinct) > 0.95 * len(by_difference)


def test_rotation_keeps_lengths_and_the_origin() -> None:
    x = torch.randn(2 * 3 * 4, 32)
    out = turned(x, (2, 3, 4))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(out[0], x[0])


def test_module_gives_cosine_and_sine_of_the_angles() -> None:
    rope = RotaryEmbedding3d(16, base=100.0, depth_base=50.0, rescale=(-1, 8, 8))
    assert not list(rope.buffers())
    angles = rotary_angles((2, 3, 4), 16, base=100.0, depth_base=50.0, rescale=(-1, 8, 8))
    cos, sin = rope((2, 3, 4), torch.device("cpu"))
    assert torch.equal(cos, angles.cos())
    assert torch.equal(sin, angles.sin())


def test_head_width_must_hold_whole_pairs() -> None:
    with pytest.raises(ValueError, match="10"):
        rotary_angles((1, 2, 2), 10)


# --- why base 2333 and odd exponents ---


def frequencies(base: float, *, odd: bool) -> Tensor:
    """``base ** (-(2 i + odd) / 32)`` for head width 64, in double precision."""
    return base ** (-(2 * torch.arange(16, dtype=torch.float64) + odd) / 32)


def smallest_gaps(depth_frequency: Tensor, *, num_x: int, num_z: int) -> Tensor:
    """Smallest angle, per frequency, between two different places of an x, z grid."""
    x = torch.arange(1 - num_x, num_x, dtype=torch.float64)
    z = torch.arange(1 - num_z, num_z, dtype=torch.float64)
    in_plane = frequencies(10000.0, odd=False)
    angles = in_plane[:, None, None] * x[:, None] + depth_frequency[:, None, None] * z
    gap = (angles + math.pi).remainder(2 * math.pi).sub(math.pi).abs()
    gap[:, num_x - 1, num_z - 1] = math.inf  # a place and itself
    return gap.flatten(1).amin(1)


def test_frequencies_are_those_of_the_table() -> None:
    angles = rotary_angles((2, 1, 2), 64)[:, ::2].double()
    torch.testing.assert_close(angles[1, 16:], frequencies(10000.0, odd=False), rtol=1e-6, atol=0)
    for half in (angles[2, :16], angles[2, 16:]):  # depth adds to both halves
        torch.testing.assert_close(half, frequencies(2333.0, odd=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("base", "odd", "num_x", "num_z", "smallest", "largest"),
    [
        (10000.0, False, 16, 16, "0.0e+00", "0.0e+00"),  # shared with the plane: places collide
        (10000.0, True, 16, 16, "7.5e-08", "4.2e-04"),  # w_z / w_x is nearly 3 / 4
        (2333.0, False, 16, 16, "0.0e+00", "1.0e-02"),  # the first frequency is 1 in both
        (2333.0, True, 16, 16, "6.8e-06", "1.85e-02"),
        (2333.0, True, 10, 5, "1.3e-05", "7.9e-02"),
    ],
)
def test_smallest_gap_between_two_places(
    base: float, odd: bool, num_x: int, num_z: int, smallest: str, largest: str
) -> None:
    gaps = smallest_gaps(frequencies(base, odd=odd), num_x=num_x, num_z=num_z)
    for gap, printed in ((gaps.min(), smallest), (gaps.max(), largest)):
        num_decimals = len(printed.split("e")[0]) - 2
        assert f"{gap:.{num_decimals}e}" == printed


def test_gaps_of_the_shared_base_fall_with_the_frequency() -> None:
    gaps = smallest_gaps(frequencies(10000.0, odd=True), num_x=16, num_z=16)
    assert gaps.diff().lt(0).all()
    even = smallest_gaps(frequencies(2333.0, odd=False), num_x=16, num_z=16)
    assert even[0] == 0
    assert even[1:].gt(1e-5).all()
