"""An image as a model takes it, and the way back to the intensities of its file."""

from typing import NamedTuple

import numpy as np

from spadnet.data.image import Image, ImageError
from spadnet.data.paste import paste_back
from spadnet.data.preprocess import Window, bound_in_plane, cut_to_body, scale, to_channels
from spadnet.weights.contract import InputContract


class Prepared(NamedTuple):
    """A prepared image.

    Attributes:
        image: Float32 voxels in [0, 1] with the channels that the model takes.
        window: Intensities of the file that became 0 and 1.
    """

    image: Image
    window: Window


def prepare_for(contract: InputContract, image: Image, *, repeat_grey: bool = True) -> Prepared:
    """Crop, scale, bound and recolour an image as a contract says.

    Args:
        contract: Of the model.
        image: As read.
        repeat_grey: Whether a grey image is repeated for a colour model, or left for the caller to
            expand, which takes no memory.

    Raises:
        ImageError: If all voxels are equal, or the channels do not fit.
    """
    rule = contract.intensity
    low, high = rule["percentiles"]
    cut, window = cut_to_body(image, crop=rule["crop_to_foreground"], percentiles=(low, high))
    bounded = bound_in_plane(cut._replace(array=scale(cut.array, window)), rule["max_in_plane"])
    is_grey = bounded.array.shape[0] == 1
    wanted = 1 if is_grey and contract.channels == 3 and not repeat_grey else contract.channels
    try:
        channels = to_channels(bounded.array, wanted)
    except ValueError as error:
        raise ImageError(f"{image.source}: {error}") from error
    return Prepared(bounded._replace(array=channels), window)


def restore(values: np.ndarray, prepared: Prepared, image: Image) -> np.ndarray:
    """Put an image that a model made back on the grid and the intensities of the file.

    Args:
        values: Voxels around [0, 1] on the grid of ``prepared``, [C, D, H, W].
        prepared: What the model saw.
        image: As read.

    Returns:
        Voxels [C, D, H, W] on the grid of ``image`` and of its type; what was cut off is as dark as
        the darkest intensity that the model saw.
    """
    low, high = prepared.window
    values = paste_back(values, prepared.image, interpolation="linear")
    np.clip(values, 0, 1, out=values)
    values *= np.float32(high - low)
    values += np.float32(low)
    if image.array.dtype.kind not in "iu":
        return values
    limits = np.iinfo(image.array.dtype)
    np.rint(values, out=values)
    return np.clip(values, limits.min, limits.max, out=values).astype(image.array.dtype)
