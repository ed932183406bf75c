"""Make the stored images of one input file: what a worker of ``spadnet preprocess`` does."""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spadnet.data.catalogue import Record, statistics
from spadnet.data.image import Image, ImageError, file_name, one_line, orient, restore_axes
from spadnet.data.inputs import Item
from spadnet.data.io import read_frames
from spadnet.data.journal import Fault, Outcome, hash_of
from spadnet.data.preprocess import Window, bound_in_plane, cut_to_body, scale
from spadnet.data.recipe_files import frame_weights
from spadnet.data.store import PACKING, SUFFIX, StoredImage, storable, write_volume

IMAGES = "images"

_FORMAT = 2  # to be raised by whoever changes what the same settings make of an image
_WORLD_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


class Settings(NamedTuple):
    """What is done to every image; see ``prepare``.

    Attributes:
        crop: Whether to cut to the foreground.
        percentiles: Of the foreground; what maps to 0 and 1.
        max_in_plane: Largest size in pixels of the shorter in-plane side; None for no bound.
    """

    crop: bool = True
    percentiles: tuple[float, float] = (0.5, 99.5)
    max_in_plane: int | None = 512

    def digest(self) -> str:
        """Hash that names these settings."""
        return hash_of({"format": _FORMAT, "packing": PACKING, **self._asdict()})


def prepare_item(item: Item, *, settings: Settings, out: Path) -> Outcome:
    """Read one item and write its images to the store.

    Args:
        item: What to read.
        settings: What is done to it.
        out: Folder of the store.

    Raises:
        OSError: If the store cannot be written. Faults of the item are returned instead.
    """
    outcome = Outcome([], [])
    try:
        frames = read_frames(item.path, spacing=item.spacing, files=item.files)
        modalities = _modalities(frames, item)
    except Exception as error:  # whatever a decoder makes of a damaged file
        return Outcome([], [Fault(item.key, _reason(error, item))])
    weights = frame_weights(item.rules.frames, len(frames))
    for index, frame in enumerate(frames):
        key = item.key if len(frames) == 1 else f"{item.key}[{index}]"
        try:
            image = _follow_rules(frame._replace(modality=modalities[index]), item)
            array, window, image, numbers = _prepare(image, item, settings)
        except Exception as error:
            outcome.faults.append(Fault(key, _reason(error, item)))
            continue
        record = _describe(item, image, key=key, weight=item.weight * weights[index])
        name, done = _file_of(key), _digest(item, settings)
        stored = StoredImage(
            key=key,
            shape=(array.shape[0], array.shape[1], array.shape[2], array.shape[3]),
            spacing=image.spacing,
            window=window,
            modality=image.modality,
            preprocessing=done,
        )
        content = write_volume(out / name, array, stored)
        outcome.records.append(
            Record(
                **record,
                **numbers,
                file=name,
                dtype=str(array.dtype),
                window=list(window),
                num_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                preprocessing=done,
            )
        )
    return outcome


def _modalities(frames: list[Image], item: Item) -> list[str | None]:
    """What each frame is: the recipe's word for its channel, the item's, or the file's."""
    channels = item.rules.channels
    if not channels:
        return [item.modality or frame.modality for frame in frames]
    if len(channels) != len(frames):
        raise ImageError(
            f"{file_name(item.path)}: {len(frames)} channels where {len(channels)} are named"
        )
    return list(channels)


def _follow_rules(image: Image, item: Item) -> Image:
    """Apply what a recipe says of channels and of the direction of slices."""
    rules, array = item.rules, image.array
    if rules.pixels == "gray":
        if (array[1:] != array[:1]).any():
            raise ImageError(f"{image.source}: coloured, in a data set that is grey")
        array = array[:1]
    elif rules.pixels == "rgb" and array.shape[0] not in (1, 3):
        raise ImageError(f"{image.source}: {array.shape[0]} channels are no colour picture")
    image = image._replace(array=array)
    along = _WORLD_AXES.get(rules.orientation[0])  # none for "auto" and "stored"
    if along is None:
        return image
    return orient(
        restore_axes(array, image.axes),
        image.axes.grid,
        source=image.source,
        modality=image.modality,
        along=along,
    )


def _prepare(
    image: Image, item: Item, settings: Settings
) -> tuple[np.ndarray, Window, Image, dict[str, Any]]:
    """Voxels to store, their window, the image that they are, and statistics of the source."""
    image, window = cut_to_body(
        image,
        crop=settings.crop,
        percentiles=settings.percentiles,
        clip=item.rules.crop == "clip",
    )
    numbers = statistics(image.array)
    bound = settings.max_in_plane
    if bound is None or min(image.array.shape[2:]) <= bound:
        return *storable(image.array, window), image, numbers
    is_bytes = image.array.dtype == np.uint8
    image = bound_in_plane(image._replace(array=scale(image.array, window)), bound)
    unit = Window(0.0, 1.0)
    if is_bytes:
        image, unit = image._replace(array=np.rint(image.array * 255)), Window(0.0, 255.0)
    return *storable(image.array, unit), image, numbers


def _describe(item: Item, image: Image, *, key: str, weight: float) -> dict[str, Any]:
    grid = image.axes.grid
    return {
        "key": key,
        "dataset": item.dataset,
        "modality": image.modality,
        "weight": weight,
        "shape": list(image.array.shape),
        "spacing": list(image.spacing),
        "degree": image.spacing.degree(),
        "original_shape": list(grid.size),
        "original_spacing": list(grid.spacing),
        "original_direction": [list(row) for row in grid.direction],
        "original_origin": list(grid.origin),
        "original_num_axes": grid.num_axes,
        "axes": list(image.axes.order),
        "flips": list(image.axes.flips),
        "direction": [list(row) for row in image.direction],
        "origin": list(image.origin),
    }


def _digest(item: Item, settings: Settings) -> str:
    """Hash of what was done to the voxels of an item."""
    rules = item.rules
    told = [rules.pixels, rules.orientation, rules.crop]
    plain = [None, "auto", "foreground"]
    return settings.digest() if told == plain else hash_of([settings.digest(), told])


def _file_of(key: str) -> str:
    """File of an image: readable, safe on every file system, different for different keys."""
    digest = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", key).strip("._")[-60:].lstrip("._")
    return f"{IMAGES}/{digest[:2]}/{readable}-{digest[:12]}{SUFFIX}"


def _reason(error: Exception, item: Item) -> str:
    """What is wrong with an item, without its place on this machine."""
    if isinstance(error, MemoryError):
        return "too large for the memory"
    words = one_line(error)
    if not isinstance(error, ImageError):
        words = f"{type(error).__name__}: {words}"
    name = file_name(item.path)
    words = re.sub(rf"^{re.escape(name)}(\[\d+\])?: ", "", words)
    return words.replace(name, item.key)
