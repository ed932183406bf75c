"""Pretrained weights for the network that nnU-Net plans."""

import re
from pathlib import Path
from typing import NamedTuple

import torch

from spadnet.models.spad_unet import SpadUNet
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import load_checkpoint, load_vit

_LEVEL = re.compile(r"(?P<part>encoder\.stages|decoder\.ups|decoder\.stages)\.(?P<level>\d+)\.")


class Transfer(NamedTuple):
    """What a network took over.

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
        levels = f" ({encoder} levels of the encoder, {decoder} of the decoder)" if encoder else ""
        return (
            f"{self.source}: {len(self.taken)} tensors taken over{levels}, {len(self.fresh)} start "
            f"afresh, {len(self.unused)} unused"
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


@torch.no_grad()
def put_pretrained_vit(vit: SpadViT, source: str | Path) -> Transfer:
    """Put the weights of a saved encoder into one without a classifier.

    Args:
        vit: The encoder that takes the weights, in place.
        source: Checkpoint folder or hub id of a SPAD-ViT or of what holds one; its first layer is
            adapted to the channels of the image, its position grid to that of ``vit``.

    Raises:
        ValueError: If it holds no SPAD-ViT, or one of another size.
        OSError: If the hub cannot be reached.
    """
    grid = vit.pos_embed.shape[2:]
    saved = load_vit(source, in_chans=vit.in_chans, pos_grid=grid).state_dict()
    own = vit.state_dict()  # shares memory with the network
    for key, value in own.items():
        if key not in saved or saved[key].shape != value.shape:
            raise ValueError(f"{source}: holds an encoder of another size: {key} does not fit")
    for key, value in own.items():
        value.copy_(saved[key])
    return Transfer(str(source), list(own), [], [key for key in saved if key not in own])
