"""Put the weights of saved models into networks that are to be trained further.

What both have goes over, heads keep their random start, and what ought to fit and does not is an
error that names it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spadnet.models.pooling import GlobalPool
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
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
        global_pool: How a saved ViT pools its tokens.
    """

    source: str
    taken: list[str]
    fresh: list[str]
    unused: list[str]
    global_pool: GlobalPool | None = None

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
def put_unet(unet: SpadUNet, source: str | Path) -> Transfer:
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
                f"{source}: {key} is {list(saved[key].shape)}, this network wants "
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


def put_vit(vit: SpadViT, source: str | Path) -> Transfer:
    """Put the weights of a saved encoder into another one; its classifier keeps its random start.

    Args:
        vit: The encoder that takes the weights, in place.
        source: Checkpoint folder or hub id of a SPAD-ViT or of what holds one; its first layer is
            adapted to the channels of the image, its position grid to that of ``vit``.

    Raises:
        ValueError: If it holds no SPAD-ViT, or one of another size.
        OSError: If the hub cannot be reached.
    """
    grid = vit.pos_embed.shape[2:]
    saved = load_vit(source, in_chans=vit.in_chans, pos_grid=grid)
    found = put_encoder_state(vit, saved.state_dict(), source=source)
    return found._replace(global_pool=saved.global_pool)


def put_tokenizer(segmentor: TokenizerSegmentor, source: str | Path) -> Transfer:
    """Put the encoder of a saved tokenizer into a segmentor, whose decoder starts afresh.

    Args:
        segmentor: The network that takes the weights, in place.
        source: Checkpoint folder or hub id of a tokenizer; its first layer is adapted to the
            channels of the image.

    Raises:
        ValueError: If it holds no tokenizer, or one of another size.
        OSError: If the hub cannot be reached.
    """
    loaded = load_checkpoint(source, expect=Tokenizer, in_chans=segmentor.in_chans)
    assert isinstance(loaded.model, Tokenizer)
    saved = loaded.model.encoder.state_dict()
    return put_encoder_state(segmentor.pyramid.encoder, saved, source=source)


@torch.no_grad()
def put_encoder_state(
    encoder: nn.Module, saved: Mapping[str, Tensor], *, source: str | Path
) -> Transfer:
    """Put saved weights into an encoder of the same form; only a ``head`` keeps its own.

    Args:
        encoder: Changed in place.
        saved: State dict of the same form.
        source: Named in errors.

    Raises:
        ValueError: If a key is in one of them only, or of another shape.
    """
    own = encoder.state_dict()  # shares memory with the network
    heads = [key for key in own if key.startswith("head.")]
    unused = [key for key in saved if key.startswith("head.")]
    for key in sorted((own.keys() | saved.keys()) - {*heads, *unused}):
        here = tuple(own[key].shape) if key in own else "missing"
        there = tuple(saved[key].shape) if key in saved else "missing"
        if here != there:
            raise ValueError(
                f"{source}: does not fit the encoder: {key} is {there} there and {here} here"
            )
    taken = [key for key in own if key not in heads]
    for key in taken:
        own[key].copy_(saved[key])
    return Transfer(str(source), taken, fresh=heads, unused=unused)
