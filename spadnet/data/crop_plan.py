"""Where a training crop is cut, how it is turned and stretched, and the degree that follows.

Augmentation of the published run (section 4 of the method), with thick slices simulated on top: the
average of ``2**a`` slices has the spacing of all of them, so one isotropic volume serves at
several degrees. The degree is decided from the augmented spacing.
"""

import math
from typing import NamedTuple

import numpy as np

from spadnet.spacing import MAX_DEGREE, Spacing, depth_stride, required_multiple

Size = tuple[int, int, int]
Triple = tuple[float, float, float]

_TRIES = 32
_MARGIN = 1.001  # keeps drawn scales off the bounds between degrees


class CropAugment(NamedTuple):
    """Chances and ranges of the geometric augmentation.

    Attributes:
        in_plane_scale: Image pixels per crop pixel, drawn from its logarithm.
        in_plane_prob: Chance of another in-plane scale than 1.
        depth_scale: Image slices per crop slice, for nearly isotropic images.
        depth_prob: Chance of another depth scale than 1.
        isotropic_threshold: Slices up to so many pixels apart count as nearly isotropic.
        rotation_prob: Chance of a rotation.
        max_angle: Largest in-plane rotation in radians.
        max_tilt: Largest rotation out of the plane in radians, for nearly isotropic crops.
        flip_prob: Chance of a flip, per axis.
        thick_prob: Chance of thick slices where thin ones would do.
        fractional_degree: Whether log2 of slice spacing by pixel spacing is rounded up with a
            chance of its fraction, instead of down always.
    """

    in_plane_scale: tuple[float, float] = (0.75, 2.0)
    in_plane_prob: float = 0.5
    depth_scale: tuple[float, float] = (0.8, 1.25)
    depth_prob: float = 0.3
    isotropic_threshold: float = 1.5
    rotation_prob: float = 0.3
    max_angle: float = math.pi / 2
    max_tilt: float = math.pi / 6
    flip_prob: float = 0.5
    thick_prob: float = 0.3
    fractional_degree: bool = False


NO_AUGMENT = CropAugment(
    in_plane_prob=0.0, depth_prob=0.0, rotation_prob=0.0, flip_prob=0.0, thick_prob=0.0
)
"""Random position and nothing else."""


class CropPlan(NamedTuple):
    """One crop of one image.

    Voxel (k, j, i) of the crop shows the image at ``centre + R (scale * (voxel - middle))`` where
    ``middle`` is the crop's own centre, negated where flipped, and R the rotation.

    Attributes:
        image: Index of the image.
        degree: Anisotropy of the crop.
        size: Voxels of the crop (z, y, x).
        centre: Its centre in voxels of the image (z, y, x); whole numbers are voxel centres.
        scale: Image voxels per crop voxel (z, y, x), before slices are averaged.
        slab: Slices averaged into one.
        flips: Whether each axis is mirrored.
        angles: Rotation in radians about z (in-plane), y and x.
        spacing: Of the crop, in mm.
    """

    image: int
    degree: int
    size: Size
    centre: Triple
    scale: Triple
    slab: int
    flips: tuple[bool, bool, bool]
    angles: Triple
    spacing: Spacing


def degree_chance(spacing: Spacing, degree: int, *, fractional: bool) -> float:
    """How likely a spacing counts as a degree; ``fractional`` as in ``CropAugment``.

    >>> [degree_chance(Spacing(3.0, 1.0, 1.0), d, fractional=True) > 0 for d in range(4)]
    [False, True, True, False]
    """
    floor = spacing.degree()
    if not fractional or floor == MAX_DEGREE:
        return float(degree == floor)
    exact = math.log2(spacing.z / min(spacing.y, spacing.x))
    return max(1 - abs(min(max(exact, 0.0), MAX_DEGREE) - degree), 0.0)


class _Stretch(NamedTuple):
    """Slices to average and the range of in-plane scales that give the wanted degree."""

    slab: int
    low: float
    high: float


def max_token_depth(
    shape: Size,
    spacing: Spacing,
    *,
    degree: int,
    tokens: Size,
    augment: CropAugment = CropAugment(),  # noqa: B008
) -> int:
    """How many tokens deep a crop of this degree can be without reaching beyond the image.

    Args:
        shape: Voxels of the image (z, y, x).
        spacing: Of the image, in mm.
        degree: Wanted.
        tokens: Tokens of a full crop (z, y, x); the answer is at most its z.
        augment: What may be done to reach the degree.

    Returns:
        Depth in tokens: all, half, a quarter ... (few depths keep batches evenly full); 0 where
        the degree cannot be had. A single token may reach beyond the image.
    """
    if degree == MAX_DEGREE:
        return 1
    depth = tokens[0]
    while depth > 0:
        size = crop_size(degree, (depth, *tokens[1:]))
        if _options(shape, spacing, degree, size, 1.0, augment):
            return depth
        depth //= 2
    return 0


def draw_crop_plan(
    rng: np.random.Generator,
    shape: Size,
    spacing: Spacing,
    *,
    tokens: Size,
    degree: int | None = None,
    image: int = 0,
    augment: CropAugment = CropAugment(),  # noqa: B008
) -> CropPlan:
    """Draw one crop.

    Args:
        rng: Source of randomness.
        shape: Voxels of the image (z, y, x).
        spacing: Of the image, in mm.
        tokens: Tokens of the crop (z, y, x), each ``required_multiple(degree)`` voxels; one slice
            at degree 5.
        degree: Wanted; by default what the augmented spacing gives.
        image: Index to note in the plan.
        augment: Chances and ranges.

    Returns:
        The plan.

    Raises:
        ValueError: If the image cannot give the wanted degree.
    """
    near = spacing.z <= augment.isotropic_threshold * min(spacing.y, spacing.x)
    depth_scale = 1.0
    if near and rng.random() < augment.depth_prob:
        depth_scale = _log_uniform(rng, *augment.depth_scale)
    if degree is None:
        degree, slab, scale = _free_stretch(
            rng, shape, spacing, tokens=tokens, depth_scale=depth_scale, augment=augment
        )
    elif degree == MAX_DEGREE:
        slab = 1
        scale = _draw_scale(rng, *_scale_range(shape, (1, tokens[1], tokens[2]), augment), augment)
    else:
        size = crop_size(degree, tokens)
        options = _options(shape, spacing, degree, size, depth_scale, augment)
        if not options and depth_scale != 1:
            depth_scale = 1.0
            options = _options(shape, spacing, degree, size, depth_scale, augment)
        if not options:
            raise ValueError(
                f"an image of {shape} voxels, {tuple(spacing)} mm, has no degree {degree}"
            )
        chosen = _choose(rng, options, augment)
        slab, scale = chosen.slab, _draw_scale(rng, chosen.low, chosen.high, augment)
    if slab > 1 or degree == MAX_DEGREE:
        depth_scale = 1.0
    size = crop_size(degree, tokens)
    crop_spacing = _stretched(spacing, slab * depth_scale, scale)
    if degree == MAX_DEGREE:
        crop_spacing = Spacing.planar(crop_spacing.y, crop_spacing.x)
    angles = _draw_angles(rng, crop_spacing, slab=slab, augment=augment)
    factors = (depth_scale, scale, scale)
    return CropPlan(
        image=image,
        degree=degree,
        size=size,
        centre=_draw_centre(rng, shape, size=size, scale=factors, slab=slab, angle=angles[0]),
        scale=factors,
        slab=slab,
        flips=(_flip(rng, augment), _flip(rng, augment), _flip(rng, augment)),
        angles=angles,
        spacing=crop_spacing,
    )


def crop_size(degree: int, tokens: Size) -> Size:
    """Voxels of a crop of so many tokens (z, y, x); one slice at degree 5."""
    depth = 1 if degree == MAX_DEGREE else tokens[0] * depth_stride(16, degree)
    _, height, width = required_multiple(degree)
    return depth, tokens[1] * height, tokens[2] * width


def _stretched(spacing: Spacing, depth_scale: float, scale: float) -> Spacing:
    return Spacing(spacing.z * depth_scale, spacing.y * scale, spacing.x * scale)


def _scale_range(shape: Size, size: Size, augment: CropAugment) -> tuple[float, float]:
    """In-plane scales that are allowed and, if possible, keep the crop inside the image."""
    if augment.in_plane_prob == 0:
        return 1.0, 1.0
    low, high = augment.in_plane_scale
    fit = min(shape[1] / size[1], shape[2] / size[2])
    return low, max(low, min(high, fit))


def _options(
    shape: Size, spacing: Spacing, degree: int, size: Size, depth_scale: float, augment: CropAugment
) -> list[_Stretch]:
    """Every way to give a crop of ``size`` the wanted degree (below 5)."""
    if spacing.is_planar:
        return []
    options = []
    low, high = _scale_range(shape, size, augment)
    for slab in [1 << a for a in range(MAX_DEGREE + 1)] if augment.thick_prob > 0 else [1]:
        stretch = depth_scale if slab == 1 else slab
        fits = size[0] * stretch <= shape[0]
        single = slab == 1 and size[0] == depth_stride(16, degree)  # padded if need be
        if not (fits or single):
            continue
        ratio = spacing.z * stretch / min(spacing.y, spacing.x)
        least = max(low, ratio / 2.0 ** (degree + 1) * _MARGIN)
        lowest = degree - 1 if augment.fractional_degree else degree
        most = min(high, ratio / 2.0**lowest / _MARGIN) if degree > 0 else high
        if least < most:
            options.append(_Stretch(slab, least, most))
        elif degree_chance(
            _stretched(spacing, stretch, 1.0), degree, fractional=augment.fractional_degree
        ):
            options.append(_Stretch(slab, 1.0, 1.0))
    return options


def _choose(rng: np.random.Generator, options: list[_Stretch], augment: CropAugment) -> _Stretch:
    """Prefer the image's own slices, else any number of averaged ones."""
    thick = [option for option in options if option.slab > 1]
    thin = [option for option in options if option.slab == 1]
    wants_thick = rng.random() < augment.thick_prob
    if thin and not (wants_thick and thick):
        return thin[0]
    return thick[int(rng.integers(len(thick)))]


def _free_stretch(
    rng: np.random.Generator,
    shape: Size,
    spacing: Spacing,
    *,
    tokens: Size,
    depth_scale: float,
    augment: CropAugment,
) -> tuple[int, int, float]:
    """Degree, slab and in-plane scale where no degree is asked for."""
    plane = (1, 16 * tokens[1], 16 * tokens[2])
    low, high = _scale_range(shape, plane, augment)
    for _ in range(_TRIES):
        slab = 1
        if not spacing.is_planar and rng.random() < augment.thick_prob:
            slab = 1 << int(rng.integers(1, MAX_DEGREE + 1))
        scale = _draw_scale(rng, low, high, augment)
        stretch = slab if slab > 1 else depth_scale
        degree = _draw_degree(rng, _stretched(spacing, stretch, scale), augment)
        if slab == 1 or crop_size(degree, tokens)[0] * slab <= shape[0]:
            return degree, slab, scale
    return _draw_degree(rng, _stretched(spacing, depth_scale, 1.0), augment), 1, 1.0


def _draw_degree(rng: np.random.Generator, spacing: Spacing, augment: CropAugment) -> int:
    floor = spacing.degree()
    if not augment.fractional_degree or floor == MAX_DEGREE:
        return floor
    return floor + int(rng.random() < degree_chance(spacing, floor + 1, fractional=True))


def _draw_scale(rng: np.random.Generator, low: float, high: float, augment: CropAugment) -> float:
    keep = rng.random() >= augment.in_plane_prob
    drawn = _log_uniform(rng, low, high)
    return 1.0 if keep and low <= 1 <= high else drawn


def _draw_angles(
    rng: np.random.Generator, spacing: Spacing, *, slab: int, augment: CropAugment
) -> Triple:
    turns = rng.random() < augment.rotation_prob
    turn, tilt_y, tilt_x = (float(value) for value in rng.uniform(-1, 1, size=3))
    if not turns:
        return 0.0, 0.0, 0.0
    ratio = spacing.z / min(spacing.y, spacing.x)
    near = 1 / augment.isotropic_threshold <= ratio <= augment.isotropic_threshold
    tilt = augment.max_tilt if near and slab == 1 else 0.0
    return turn * augment.max_angle, tilt_y * tilt, tilt_x * tilt


def _draw_centre(
    rng: np.random.Generator, shape: Size, *, size: Size, scale: Triple, slab: int, angle: float
) -> Triple:
    """Centre such that the crop starts at a border between voxels, inside the image if it fits."""
    extent = [size[0] * slab * scale[0], size[1] * scale[1], size[2] * scale[2]]
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    reach = [
        extent[0],
        cosine * extent[1] + sine * extent[2],
        sine * extent[1] + cosine * extent[2],
    ]
    centre = []
    for axis in range(3):
        slack = shape[axis] - reach[axis]
        # The slack that rounding to whole voxels needs is half a voxel on either side.
        start = rng.random() * max(math.floor(slack) + 1, 1) if slack >= 0 else slack / 2
        first = math.floor(start + (reach[axis] - extent[axis]) / 2)
        centre.append(first + (extent[axis] - 1) / 2)
    return centre[0], centre[1], centre[2]


def _flip(rng: np.random.Generator, augment: CropAugment) -> bool:
    return bool(rng.random() < augment.flip_prob)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))
