"""An image of any size through a tokenizer and back, in bounded memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spadnet.data.image import Image
from spadnet.inference.prepared import Prepared, prepare_for
from spadnet.inference.sliding_window import stitch
from spadnet.models.tokenizer import Tokenizer
from spadnet.spacing import required_multiple
from spadnet.weights.contract import InputContract

WINDOW = (4, 16, 16)
"""Tokens (z, y, x) that pass the tokenizer together."""


class Reconstruction(NamedTuple):
    """What became of an image.

    Attributes:
        values: Reconstruction in [0, 1] on the grid of ``prepared.image``, [C, D, H, W].
        prepared: What the tokenizer saw; a grey image has one channel.
        degree: Degree of anisotropy it was seen at.
    """

    values: Tensor
    prepared: Prepared
    degree: int


def reconstruct(
    tokenizer: Tokenizer,
    image: Image,
    *,
    contract: InputContract,
    window: Sequence[int] = WINDOW,
    overlap: float = 0.25,
    batch_size: int = 1,
) -> Reconstruction:
    """Encode an image as tokens and decode them, window by window.

    Args:
        tokenizer: In evaluation mode; its device and precision are used.
        image: As read.
        contract: Of the tokenizer.
        window: Tokens (z, y, x) that pass the tokenizer together.
        overlap: Share of a window that its neighbour covers too.
        batch_size: Windows that pass the tokenizer together.

    Raises:
        ImageError: If all voxels are equal, or the channels do not fit.
    """
    prepared = prepare_for(contract, image, repeat_grey=False)
    degree = prepared.image.spacing.degree(contract.max_degree)
    multiple = required_multiple(degree, stride=contract.stride)
    volume = torch.from_numpy(prepared.image.array)
    weight = next(tokenizer.parameters())
    is_grey = volume.shape[0] == 1

    def through(x: Tensor) -> Tensor:
        output, _ = tokenizer(x.to(weight).expand(-1, contract.channels, -1, -1, -1), degree)
        return output.float().mean(1, keepdim=True) if is_grey else output.float()

    values = stitch(
        volume,
        through,
        window=[n * step for n, step in zip(window, multiple, strict=True)],
        multiple=multiple,
        overlap=overlap,
        batch_size=batch_size,
    )
    return Reconstruction(values.clamp_(0, 1), prepared, degree)
