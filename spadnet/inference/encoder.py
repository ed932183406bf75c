"""The encoder as users meet it: an image file goes in, features come out."""

import math
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.data.image import Vector, orient, plain_grid
from spadnet.data.io import Image, ImageError, read_image
from spadnet.data.preprocess import prepare, to_channels
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing, required_multiple
from spadnet.weights.contract import InputContract, contract_of
from spadnet.weights.hub import load_checkpoint

MAX_TOKENS = 4096
"""Tokens that see each other at once; a larger image is encoded window by window."""


class Embedding(NamedTuple):
    """Features of one image, float32 on the CPU.

    Attributes:
        cls: Feature of the whole image, [C]: the class token, or the mean token of models that
            pool so.
        tokens: Features of the patches, [D, H, W, C].
        spacing: Millimetres between voxels of the image as the model saw it.
        degree: Degree of anisotropy it was seen at.
        patch: Voxels (z, y, x) that one token covers.
        origin: World position (L, P, S) in mm of the first voxel that the model saw.
    """

    cls: Tensor
    tokens: Tensor
    spacing: Spacing
    degree: int
    patch: tuple[int, int, int]
    origin: Vector


class Encoder:
    """Encode images of any dimension and spacing: read, orient, scale, pad, encode.

    >>> encoder = load_encoder("runs/demo/encoder")  # doctest: +SKIP
    >>> embedding = encoder("chest.nii.gz")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SpadViT,
        *,
        contract: InputContract | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """Wrap a model.

        Args:
            model: The model; its device and precision are used, and it is put in evaluation mode.
            contract: What the model takes; spadnet's own rule by default.
            max_tokens: Tokens that see each other at once. A larger image is cut into windows that
                know nothing of each other, and their class tokens are averaged.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, got {max_tokens}")
        self.model = model.eval()
        self.contract = contract_of(model) if contract is None else contract
        self.max_tokens = max_tokens

    def __call__(
        self,
        image: str | Path | Image | np.ndarray | Tensor,
        *,
        spacing: Sequence[float] | None = None,
    ) -> Embedding:
        """Encode one image.

        Args:
            image: File, DICOM folder, image as read, or an array [H, W], [D, H, W] or [C, D, H, W].
            spacing: Millimetres along z, y, x; required for 3D arrays, and said in place of what a
                file says. An array [H, W] is a 2D image, and so is [H, W, 3] with the spacing
                of one, ``Spacing.planar()``.

        Raises:
            ImageError: If the image cannot be used.
        """
        prepared = self.prepare(self._open(image, spacing))
        degree = prepared.spacing.degree(self.contract.max_degree)
        patch = required_multiple(degree, stride=self.contract.stride)
        volume = _pad(torch.from_numpy(prepared.array), patch)
        cls, tokens = self._encode(volume, degree, patch)
        return Embedding(cls, tokens, prepared.spacing, degree, patch, prepared.origin)

    def prepare(self, image: Image) -> Image:
        """Crop, scale and recolour an image as the model's contract says.

        Args:
            image: As read.

        Returns:
            Image with float32 voxels in [0, 1] and the channels that the model takes.
        """
        rule = self.contract.intensity
        prepared = prepare(
            image,
            crop=rule["crop_to_foreground"],
            percentiles=tuple(rule["percentiles"]),
            max_in_plane=rule["max_in_plane"],
        )
        try:
            return prepared._replace(array=to_channels(prepared.array, self.contract.channels))
        except ValueError as error:
            raise ImageError(f"{image.source}: {error}") from error

    def _open(
        self, image: str | Path | Image | np.ndarray | Tensor, spacing: Sequence[float] | None
    ) -> Image:
        if isinstance(image, str | Path):
            return read_image(image, spacing=spacing)
        if isinstance(image, Image):
            if spacing is not None:
                raise ValueError(f"{image.source}: an image as read has its own spacing")
            return image
        return image_from_array(image, spacing=spacing)

    @torch.no_grad()
    def _encode(self, volume: Tensor, degree: int, patch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Encode a volume [C_in, D, H, W]; return pooled feature [C] and tokens [d, h, w, C]."""
        grid = [n // step for n, step in zip(volume.shape[1:], patch, strict=True)]
        weight = self.model.patch_embed.proj.weight
        tokens = torch.empty(*grid, self.model.embed_dim)
        pooled = torch.zeros(self.model.embed_dim)
        for window in windows(grid, self.max_tokens):
            cut = [slice(w.start * p, w.stop * p) for w, p in zip(window, patch, strict=True)]
            part = volume[:, cut[0], cut[1], cut[2]][None].to(weight)
            features = self.model.forward_features(part, degree)
            shape = [w.stop - w.start for w in window]
            tokens[window] = (
                features[0, self.model.num_prefix_tokens :].unflatten(0, shape).float().cpu()
            )
            share = math.prod(shape) / math.prod(grid)
            pooled += share * self.model.forward_head(features, pre_logits=True)[0].float().cpu()
        return pooled, tokens


def load_encoder(source: str | Path, *, max_tokens: int = MAX_TOKENS, **options: Any) -> Encoder:
    """Load an encoder that takes image files; its ``.model`` is the SPAD-ViT.

    >>> encoder = load_encoder("runs/demo/encoder")  # doctest: +SKIP

    Args:
        source: Checkpoint folder of an encoder or a masked image model, or a hub id; see
            :func:`spadnet.weights.hub.load_checkpoint`.
        max_tokens: See :class:`Encoder`.
        **options: Options of :func:`spadnet.weights.hub.load_checkpoint`, such as ``in_chans``
            and ``revision``.
    """
    loaded = load_checkpoint(source, expect=SpadViT, **options)
    assert isinstance(loaded.model, SpadViT)
    return Encoder(loaded.model, contract=loaded.contract, max_tokens=max_tokens)


def image_from_array(
    array: np.ndarray | Tensor, *, spacing: Sequence[float] | None = None
) -> Image:
    """Make an image of an array without geometry.

    Args:
        array: Voxels, [H, W], [D, H, W] or [C, D, H, W]; with the spacing of a 2D image, also
            [H, W, 3].
        spacing: Millimetres along z, y, x; only an array [H, W] may go without.
    """
    source = "array"
    voxels = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if spacing is None:
        if voxels.ndim != 2:
            raise ImageError(f"{source}: {voxels.ndim} axes need spacing=(z, y, x)")
        spacing = Spacing.planar()
    if len(spacing) != 3:
        raise ImageError(f"{source}: spacing {tuple(spacing)} must have three values, z y x")
    known = Spacing(*(float(value) for value in spacing))
    if known.is_planar and voxels.ndim == 3 and voxels.shape[-1] == 3:
        voxels = np.moveaxis(voxels, -1, 0)[:, None]
    if not 2 <= voxels.ndim <= 4 or voxels.size == 0:
        raise ImageError(f"{source}: shape {voxels.shape} is not [H, W], [D, H, W] or [C, D, H, W]")
    if voxels.dtype.kind not in "iufb" or not np.isfinite(voxels).all():
        raise ImageError(f"{source}: voxels must be finite numbers")
    voxels = voxels.reshape(*(1,) * (4 - voxels.ndim), *voxels.shape)
    if known.is_planar and voxels.shape[1] != 1:
        raise ImageError(
            f"{source}: {voxels.shape[1]} slices, but the spacing is that of a 2D image"
        )
    size = (voxels.shape[1], voxels.shape[2], voxels.shape[3])
    grid = plain_grid(size, num_axes=3)._replace(spacing=(known.z, known.y, known.x))
    return orient(voxels, grid, source=source)


def windows(grid: Sequence[int], max_tokens: int) -> list[tuple[slice, slice, slice]]:
    """Cut a token grid (D, H, W) into windows of at most ``max_tokens`` tokens.

    Windows are as alike and as near to cubes as the grid allows, and do not overlap.
    """
    parts = [1, 1, 1]
    while math.prod(size := [-(-n // p) for n, p in zip(grid, parts, strict=True)]) > max_tokens:
        parts[size.index(max(size))] += 1
    edges = [[n * i // p for i in range(p + 1)] for n, p in zip(grid, parts, strict=True)]
    axes = [[slice(a, b) for a, b in pairwise(e)] for e in edges]
    return list(product(*axes))


def _pad(volume: Tensor, multiple: Sequence[int]) -> Tensor:
    """Repeat the last slice, row and column of [C, D, H, W] until sizes are multiples."""
    missing = [-n % step for n, step in zip(volume.shape[1:], multiple, strict=True)]
    ends = (0, missing[2], 0, missing[1], 0, missing[0])
    return F.pad(volume[None], ends, mode="replicate")[0]
