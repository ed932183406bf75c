"""The encoder as users meet it: an image file goes in, features come out."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spadnet.data.image import Vector, orient, plain_grid
from spadnet.data.inputs import Item
from spadnet.data.io import Image, ImageError, read_image
from spadnet.inference.prepared import prepare_for
from spadnet.inference.sliding_window import pad_to_multiple
from spadnet.inference.trained_range import RangeWatch, TrainedRange
from spadnet.models.pooling import pool_tokens
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing, required_multiple
from spadnet.weights.contract import InputContract, contract_of
from spadnet.weights.hub import load_checkpoint

MAX_TOKENS = 4096
"""Tokens that see each other at once; a larger image is encoded window by window."""

_MAX_WAITING = 1 << 26  # voxels of images that wait for others of their size: 256 MiB
_WAITING_BATCHES = 8  # how many batches' worth of images may wait

Source = str | Path | Item | Image | np.ndarray | Tensor
"""What an encoder takes: a file or DICOM folder, one listed in a table, an image, an array."""


class Embedding(NamedTuple):
    """Features of one image, float32 on the CPU.

    Attributes:
        cls: Feature of the whole image, [C]: the class token, or the mean of the tokens; [2C] of
            models that pool their mean and standard deviation.
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

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of tokens along z, y, x."""
        z, y, x = self.tokens.shape[:3]
        return z, y, x


class _View(NamedTuple):
    """An image as the model takes it: ``volume`` [C, D, H, W], padded to whole patches."""

    volume: Tensor
    spacing: Spacing
    degree: int
    patch: tuple[int, int, int]
    origin: Vector

    @property
    def grid(self) -> tuple[int, int, int]:
        z, y, x = (n // p for n, p in zip(self.volume.shape[1:], self.patch, strict=True))
        return z, y, x


class Encoder:
    """Encode images of any dimension and spacing: read, orient, scale, pad, encode.

    >>> encoder = load_encoder("runs/demo/mim/encoder")  # doctest: +SKIP
    >>> embedding = encoder("chest.nii.gz")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SpadViT,
        *,
        contract: InputContract | None = None,
        max_tokens: int = MAX_TOKENS,
        trained: TrainedRange | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: The model; its device and precision are used, and it is put in evaluation mode.
            contract: What the model takes; spadnet's own rule by default.
            max_tokens: Tokens that see each other at once. A larger image is cut into windows that
                know nothing of each other; class tokens are averaged, statistics are of all.
            trained: Spacings that the model has seen; the first image beyond them is warned of.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, got {max_tokens}")
        self.model = model.eval()
        self.contract = contract_of(model) if contract is None else contract
        self.max_tokens = max_tokens
        self.watch = RangeWatch(TrainedRange() if trained is None else trained)

    def __call__(self, image: Source, *, spacing: Sequence[float] | None = None) -> Embedding:
        """Encode one image.

        Args:
            image: File, DICOM folder, item of a table, image as read, or an array [H, W],
                [D, H, W] or [C, D, H, W].
            spacing: Millimetres along z, y, x; required for 3D arrays, and said in place of what a
                file says. An array [H, W] is a 2D image, and so is [H, W, 3] with the spacing
                of one, ``Spacing.planar()``.

        Raises:
            ImageError: If the image cannot be used.
        """
        view = self._view(image, spacing)
        cls, tokens = self._encode(view.volume[None], view)
        return _embedding(cls[0], tokens[0], view)

    def encode_many(self, images: Iterable[Source], *, batch_size: int = 8) -> Iterator[Embedding]:
        """Encode images in batches and give their embeddings in order.

        >>> for embedding in encoder.encode_many(["a.nii.gz", "b.png"]):  # doctest: +SKIP
        ...     print(embedding.cls)

        Args:
            images: As for :meth:`__call__`; they are read as they are needed.
            batch_size: Images that pass the model together: those of one degree and size. Fewer
                where they have more than ``max_tokens`` tokens together.

        Raises:
            ImageError: If an image cannot be used, once those before it were given.
        """
        for result in self.encode_each(images, batch_size=batch_size):
            if isinstance(result, ImageError):
                raise result
            yield result

    def encode_each(
        self, images: Iterable[Source], *, batch_size: int = 8
    ) -> Iterator[Embedding | ImageError]:
        """Like :meth:`encode_many`; an image that cannot be used gives its error in its place.

        Raises:
            ValueError: If ``batch_size`` is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        for waiting in self._waiting(images, batch_size):
            results: dict[int, Embedding | ImageError] = {}
            groups: dict[tuple[int, torch.Size], list[tuple[int, _View]]] = {}
            for place, view in enumerate(waiting):
                if isinstance(view, ImageError):
                    results[place] = view
                else:
                    key = view.degree, view.volume.shape
                    groups.setdefault(key, []).append((place, view))
            for group in groups.values():
                first = group[0][1]
                size = min(batch_size, max(self.max_tokens // math.prod(first.grid), 1))
                for start in range(0, len(group), size):
                    batch = group[start : start + size]
                    volumes = torch.stack([view.volume for _, view in batch])
                    cls, tokens = self._encode(volumes, first)
                    for (place, view), one, map_ in zip(batch, cls, tokens, strict=True):
                        results[place] = _embedding(one.clone(), map_.clone(), view)
            yield from (results[place] for place in range(len(waiting)))

    def _waiting(
        self, images: Iterable[Source], batch_size: int
    ) -> Iterator[list[_View | ImageError]]:
        """Read as many images as may wait for each other."""
        waiting: list[_View | ImageError] = []
        voxels = 0
        for image in images:
            try:
                view = self._view(image)
                waiting.append(view)
                voxels += view.volume.numel()
            except ImageError as error:
                waiting.append(error)
            if len(waiting) == _WAITING_BATCHES * batch_size or voxels >= _MAX_WAITING:
                yield waiting
                waiting, voxels = [], 0
        if waiting:
            yield waiting

    def _view(self, image: Source, spacing: Sequence[float] | None = None) -> _View:
        prepared = self.prepare(self._open(image, spacing))
        self.watch.look_at(prepared)
        degree = prepared.spacing.degree(self.contract.max_degree)
        patch = required_multiple(degree, stride=self.contract.stride)
        volume = pad_to_multiple(torch.from_numpy(prepared.array), patch)
        return _View(volume, prepared.spacing, degree, patch, prepared.origin)

    def prepare(self, image: Image) -> Image:
        """Crop, scale and recolour an image as the model's contract says.

        Args:
            image: As read.

        Returns:
            Image with float32 voxels in [0, 1] and the channels that the model takes.
        """
        return prepare_for(self.contract, image).image

    def _open(self, image: Source, spacing: Sequence[float] | None) -> Image:
        if isinstance(image, Item):
            return read_image(image.path, spacing=image.spacing if spacing is None else spacing)
        if isinstance(image, str | Path):
            return read_image(image, spacing=spacing)
        if isinstance(image, Image):
            if spacing is not None:
                raise ValueError(f"{image.source}: an image as read has its own spacing")
            return image
        return image_from_array(image, spacing=spacing)

    @torch.no_grad()
    def _encode(self, volumes: Tensor, view: _View) -> tuple[Tensor, Tensor]:
        """Pool [B, C] and tokens [B, d, h, w, C] of volumes [B, C_in, D, H, W] like ``view``."""
        grid, model = view.grid, self.model
        weight = model.patch_embed.proj.weight
        prefix = torch.zeros(len(volumes), model.num_prefix_tokens, model.embed_dim)
        tokens = torch.empty(len(volumes), *grid, model.embed_dim)
        for window in windows(grid, self.max_tokens):
            cut = [slice(w.start * p, w.stop * p) for w, p in zip(window, view.patch, strict=True)]
            part = volumes[:, :, cut[0], cut[1], cut[2]].to(weight)
            features = model.forward_features(part, view.degree).float().cpu()
            own, patches = features.tensor_split([model.num_prefix_tokens], dim=1)
            shape = [w.stop - w.start for w in window]
            tokens[:, window[0], window[1], window[2]] = patches.unflatten(1, shape)
            prefix += math.prod(shape) / math.prod(grid) * own
        if model.global_pool in ("token", ""):  # without a choice it is that of the class
            pooled = prefix[:, 0]
        else:
            pooled = pool_tokens(tokens.flatten(1, 3), model.global_pool, num_prefix_tokens=0)
        if model.norm_after_pool:
            pooled = model.norm(pooled.to(weight)).float().cpu()
        return pooled, tokens


def _embedding(cls: Tensor, tokens: Tensor, view: _View) -> Embedding:
    return Embedding(cls, tokens, view.spacing, view.degree, view.patch, view.origin)


def load_encoder(source: str | Path, *, max_tokens: int = MAX_TOKENS, **options: Any) -> Encoder:
    """Load an encoder that takes image files; its ``.model`` is the SPAD-ViT.

    >>> encoder = load_encoder("runs/demo/mim/encoder")  # doctest: +SKIP

    Args:
        source: Checkpoint folder of an encoder or a masked image model, or a hub id; see
            :func:`spadnet.weights.hub.load_checkpoint`.
        max_tokens: See :class:`Encoder`.
        **options: Options of :func:`spadnet.weights.hub.load_checkpoint`, such as ``in_chans``
            and ``revision``.
    """
    loaded = load_checkpoint(source, expect=SpadViT, **options)
    assert isinstance(loaded.model, SpadViT)
    trained = TrainedRange.of(loaded.config["training"])
    return Encoder(loaded.model, contract=loaded.contract, max_tokens=max_tokens, trained=trained)


def image_from_array(
    array: np.ndarray | Tensor, *, spacing: Sequence[float] | None = None
) -> Image:
    """Make an image of an array without geometry.

    Args:
        array: Voxels, [H, W], [D, H, W] or [C, D, H, W]; with the spacing of a 2D image, also
            [H, W, 3].
        spacing: Millimetres along z, y, x; only an array [H, W] may go without.

    Raises:
        ImageError: If shape, values or spacing are not those of an image.
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
