"""Laws of geometry on random grids: what is turned goes back, what is written lies where it lay."""

import math
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spadnet.data.crop_plan import CropAugment, draw_crop_plan, max_token_depth
from spadnet.data.extract import extract
from spadnet.data.image import Grid, orient, restore_axes
from spadnet.data.io import read_image, write_like
from spadnet.spacing import Spacing

law = settings(max_examples=20, derandomize=True, deadline=None, database=None)
small = settings(law, max_examples=12)
many = settings(law, max_examples=150)

sizes = st.tuples(*[st.integers(2, 7)] * 3)
spacings = st.tuples(*[st.floats(0.2, 9.0)] * 3)
origins = st.tuples(*[st.floats(-300, 300)] * 3)
angles = st.tuples(*[st.floats(-math.pi, math.pi)] * 3)
mirrors = st.booleans()


def directions(turns: tuple[float, float, float], mirror: bool) -> np.ndarray:
    """Unit vectors of three axes, rows: any rotation, perhaps left-handed, [3, 3]."""
    matrix = np.eye(3)
    for turn, (first, second) in zip(turns, ((0, 1), (1, 2), (0, 1)), strict=True):
        about = np.eye(3)
        about[first, first] = about[second, second] = math.cos(turn)
        about[first, second], about[second, first] = -math.sin(turn), math.sin(turn)
        matrix = matrix @ about
    return matrix * np.array([[-1.0 if mirror else 1.0], [1.0], [1.0]])


def numbered(size: tuple[int, ...]) -> np.ndarray:
    """All voxels different."""
    return np.arange(math.prod(size), dtype=np.int16).reshape(size)


@law
@given(size=sizes, spacing=spacings, origin=origins, turns=angles, mirror=mirrors)
def test_turning_an_image_keeps_every_voxel_in_its_place(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    turns: tuple[float, float, float],
    mirror: bool,
) -> None:
    rows = directions(turns, mirror)
    array = numbered(size)
    grid = Grid(size, spacing, tuple(map(tuple, rows.tolist())), origin, num_axes=3)
    image = orient(array[None], grid, source="scan")
    assert np.array_equal(restore_axes(image.array[0], image.axes), array)
    assert sorted(image.spacing) == sorted(spacing)
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    world = dict(
        zip(
            array.ravel().tolist(),
            (places @ (rows * np.array(spacing)[:, None]) + origin).reshape(-1, 3),
            strict=True,
        )
    )
    steps = np.array(image.direction) * np.array(image.spacing)[:, None]
    for place in np.ndindex(*image.array.shape[1:]):
        here = np.array(image.origin) + np.array(place) @ steps
        np.testing.assert_allclose(here, world[int(image.array[0][place])], atol=1e-6)


@small
@given(size=sizes, spacing=spacings, origin=origins, turns=angles, mirror=mirrors)
def test_spacing_is_the_norm_of_a_column_and_masks_lie_on_the_file(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    turns: tuple[float, float, float],
    mirror: bool,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = directions(turns, mirror).T * np.array(spacing)
    affine[:3, 3] = origin
    with tempfile.TemporaryDirectory() as folder:
        scan, mask = Path(folder, "scan.nii"), Path(folder, "mask.nii")
        nib.save(nib.Nifti1Image(numbered(size), affine), scan)
        image = read_image(scan)
        write_like(image.array, image, mask)
        before, after = nib.load(scan), nib.load(mask)
        assert np.array_equal(after.affine, before.affine)
        assert np.array_equal(np.asarray(after.dataobj), numbered(size))
    norms = np.linalg.norm(before.affine[:3, :3], axis=0)
    # The file's array is x, y, z; that of a Grid is z, y, x.
    expected = [norms[2 - axis] for axis in image.axes.order]
    np.testing.assert_allclose(image.spacing, expected, rtol=1e-5)


@many
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(8, 150), st.integers(8, 150)),
    pixel=st.floats(0.2, 3.0),
    ratio=st.floats(0.3, 40.0),
    tokens=st.tuples(*[st.integers(1, 4)] * 3),
    degree=st.none() | st.integers(0, 5),
    fractional=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_crops_stay_inside_where_they_fit(
    shape: tuple[int, int, int],
    pixel: float,
    ratio: float,
    tokens: tuple[int, int, int],
    degree: int | None,
    fractional: bool,
    seed: int,
) -> None:
    spacing = (
        Spacing.planar(pixel, pixel) if shape[0] == 1 else Spacing(pixel * ratio, pixel, pixel)
    )
    augment = CropAugment(rotation_prob=0.0, fractional_degree=fractional)
    if degree is not None:
        depth = max_token_depth(shape, spacing, degree=degree, tokens=tokens, augment=augment)
        if depth == 0:
            return
        tokens = (depth, tokens[1], tokens[2])
    rng = np.random.default_rng(seed)
    plan = draw_crop_plan(rng, shape, spacing, tokens=tokens, degree=degree, augment=augment)
    slabs = (plan.slab, 1, 1)
    for axis in range(3):
        extent = plan.size[axis] * plan.scale[axis] * slabs[axis]
        first = plan.centre[axis] - (extent - 1) / 2
        if extent <= shape[axis]:
            assert first > -1e-6
            assert first + extent < shape[axis] + 1e-6
        else:  # as much on either side, but for rounding
            assert abs((first + (extent - 1) / 2) - (shape[axis] - 1) / 2) <= 1


@law
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(8, 60), st.integers(8, 60)),
    ratio=st.floats(0.5, 20.0),
    seed=st.integers(0, 2**32),
)
def test_a_constant_stays_constant(shape: tuple[int, int, int], ratio: float, seed: int) -> None:
    spacing = Spacing.planar() if shape[0] == 1 else Spacing(ratio, 1.0, 1.0)
    rng = np.random.default_rng(seed)
    plan = draw_crop_plan(
        rng, shape, spacing, tokens=(1, 2, 2), augment=CropAugment(rotation_prob=0.5)
    )
    crop = extract(torch.full((1, *shape), 0.625), plan)
    torch.testing.assert_close(crop, torch.full_like(crop, 0.625), rtol=0, atol=1e-5)
