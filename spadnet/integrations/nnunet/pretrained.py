"""Pretrained weights for the levels that a planned U-Net shares with a saved one."""

import re
from pathlib import Path
from typing import NamedTuple

import torch

from spadnet.models.spad_unet import SpadUNet
from spadnet.weights.hub import load_checkpoint

_LEVEL = re.compile(r"(?P<part>encoder\.stages|decoder\.ups|decoder\.stages)\.(?P<level>\d+)\.")


class Transfer(NamedTuple):
    """What a U-Net took over.

    Attributes:
        source: Where from.
        taken: Keys that were taken over.
        fresh: Keys that keep their random start: heads, and levels that the source lacks.
        unused: Keys of the source for which there is no place.
    """

    source: str
    taken: list[str]
    fresh: list[str]
    unused: list[str]

    def __str__(self) -> str:
        encoder, decoder = (
            len({m[0] for key in self.taken if (m := _LEVEL.match(key)) and m["part"] == part})
            for part in ("encoder.stages", "decoder.stages")
        )
        return (
            f"{self.source}: {encoder} levels of the encoder and {decoder} of the decoder taken "
            f"over, {len(self.fresh)} tensors start afresh, {len(self.unused)} unused"
        )


@torch.no_grad()
def put_pretrained(unet: SpadUNet, source: str | Path) -> Transfer:
    """Put the weights of a saved SPAD-UNet into another one; heads keep their random start.

    Levels are told apart by how often pixels were halved; those that both have must be alike. The
    first convolution is adapted to the channels of the image.

    Args:
        unet: The network that takes the weights, in place.
        source: Checkpoint folder or hub id, see :func:`spadnet.weights.hub.load_checkpoint`.

    Raises:
        ValueError: If it holds no SPAD-UNet, or a level that both have differs.
        OSError: If the hub cannot be reached.
    """
    saved = load_checkpoint(source, expect=SpadUNet, in_chans=unet.in_chans).model.state_dict()
    own = unet.state_dict()  # shares memory with the network
    taken = [key for key in own if key in saved and _LEVEL.match(key)]
    for key in taken:
        if saved[key].shape != own[key].shape:
            raise ValueError(
                f"{source}: {key} is {list(saved[key].shape)}, the plan wants "
                f"{list(own[key].shape)}; levels in common must have the same widths"
            )
    common = {m[0] for key in taken if (m := _LEVEL.match(key))}
    differing = [
        key
        for key in {**own, **saved}
        if (key in own) != (key in saved) and (m := _LEVEL.match(key)) and m[0] in common
    ]
    if differing:
        raise ValueError(
            f"{source}: {differing[0]} is in one network only; levels in common must have the same "
            "number of convolutions"
        )
    for key in taken:
        own[key].copy_(saved[key])
    return Transfer(
        str(source),
        taken,
        fresh=[key for key in own if key not in taken],
        unused=[key for key in saved if key not in taken],
    )
