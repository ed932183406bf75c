"""What segmentors share, and a SPAD-ViT that segments.

Coarse maps out of a feature pyramid, the two finest from convolutions, and a U-Net decoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spadnet.layers.spad_conv import SpadConv3d
from spadnet.models.pyramid import EncoderPyramid, Pyramid
from spadnet.models.unet_parts import ConvNormAct, UNetDecoder, init_he
from spadnet.models.vit import SpadViT
from spadnet.spacing import MAX_DEGREE, required_multiple

STRIDE = 32  # of a VitSegmentor
WIDTHS = (16, 32, 64, 96, 128, 160)


def default_out_indices(depth: int) -> list[int]:
    """Blocks of a ViT that feed a pyramid: a third, a half, two thirds and all of the way.

    >>> default_out_indices(12)
    [3, 5, 7, 11]
    """
    return [max(depth * n // 12 - 1, 0) for n in (4, 6, 8, 12)]


class Segmentor(nn.Module, ABC):
    """Joins the maps of a pyramid, at strides 4, 8 and so on, with a stem at strides 1 and 2.

    Attributes:
        stride: Total stride in-plane.
    """

    def __init__(
        self,
        pyramid: Pyramid | EncoderPyramid,
        *,
        in_chans: int,
        num_classes: int,
        widths: Sequence[int],
        deep_supervision: bool,
    ) -> None:
        """Build stem and decoder.

        Args:
            pyramid: Gives the coarse maps.
            in_chans: Channels of the image.
            num_classes: Channels of the logits.
            widths: Channels of the levels, the finest first.
            deep_supervision: Whether to return logits of all levels of the decoder; where not,
                the heads of coarser levels are frozen.
        """
        super().__init__()
        if len(widths) != 2 + len(pyramid.widths):
            raise ValueError(
                f"the decoder has {2 + len(pyramid.widths)} levels, got widths={tuple(widths)}"
            )
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.widths = tuple(widths)
        self.stride: int = 2 << len(pyramid.widths)
        self.pyramid: Pyramid | EncoderPyramid = pyramid
        self.stem1 = ConvNormAct(in_chans, widths[0])
        self.stem2 = ConvNormAct(widths[0], widths[1], stride=2)
        self.laterals = nn.ModuleList(
            SpadConv3d(given, width, 1)
            for given, width in zip(pyramid.widths, widths[2:], strict=True)
        )
        self.decoder = UNetDecoder(
            widths,
            (2,) * (len(widths) - 1),
            num_classes=num_classes,
            deep_supervision=deep_supervision,
        )
        for part in (self.stem1, self.stem2, self.laterals, self.decoder):
            part.apply(init_he)
        if not deep_supervision:
            self.decoder.heads[1:].requires_grad_(False)

    @abstractmethod
    def coarse_maps(self, x: Tensor, degree: int) -> list[Tensor]:
        """Maps of the pyramid of volumes in [0, 1], [B, C_in, D, H, W]."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments, as plain types, that build this model as it is now."""

    def forward(self, x: Tensor, degree: int | None = None) -> Tensor | list[Tensor]:
        """Return logits [B, num_classes, D, H, W].

        Under deep supervision, a list of them: the finest level first, each further one half as
        large in-plane.

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W], sizes multiples of
                ``required_multiple(degree, stride=stride)``; or [B, C_in, H, W] for 2D.
            degree: Degree of anisotropy; 2D images need none.
        """
        if x.ndim == 4:
            logits = self.forward(x.unsqueeze(2), MAX_DEGREE)
            return [y.squeeze(2) for y in logits] if isinstance(logits, list) else logits.squeeze(2)
        if degree is None:
            raise ValueError("a volume needs a degree: Spacing(z, y, x).degree()")
        steps = required_multiple(degree, stride=self.stride)
        if any(n % step or n == 0 for n, step in zip(x.shape[2:], steps, strict=True)):
            raise ValueError(
                f"size {tuple(x.shape[2:])} is not a multiple of {steps}, which degree {degree} "
                "requires"
            )
        fine = self.stem1(x, degree)
        maps = [fine, self.stem2(fine, degree)]
        for index, (lateral, coarse) in enumerate(
            zip(self.laterals, self.coarse_maps(x, degree), strict=True)
        ):
            maps.append(lateral(coarse, max(degree - 2 - index, 0)))
        return self.decoder(maps, degree)


class VitSegmentor(Segmentor):
    """Maps at strides 1 and 2 from convolutions, 4 to 32 from the ViT, joined from coarse to fine.

    >>> vit = SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=1)
    >>> segmentor = VitSegmentor(vit, num_classes=3, out_indices=(0, 0, 1, 1))
    >>> import torch
    >>> segmentor(torch.rand(1, 1, 4, 64, 64), degree=3).shape
    torch.Size([1, 3, 4, 64, 64])
    """

    pyramid: Pyramid

    def __init__(
        self,
        vit: SpadViT,
        *,
        num_classes: int,
        widths: Sequence[int] = WIDTHS,
        out_indices: Sequence[int] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        """Build the model.

        Args:
            vit: The encoder, of patch size 16; its classifier is taken away.
            num_classes: Channels of the logits.
            widths: Channels of the six levels, the finest first.
            out_indices: Blocks whose output feeds strides 4, 8, 16, 32; by default a third, a
                half, two thirds and all of the way, which are 3, 5, 7 and 11 of 12 blocks.
            deep_supervision: Whether to return logits of all levels of the decoder; where not,
                the heads of coarser levels are frozen.
        """
        if vit.patch_embed.patch_size != 16:
            raise ValueError(f"the pyramid takes patches of 16, got {vit.patch_embed.patch_size}")
        if out_indices is None:
            out_indices = default_out_indices(len(vit.blocks))
        vit.reset_classifier(0)
        super().__init__(
            Pyramid(vit, out_indices=out_indices),
            in_chans=vit.in_chans,
            num_classes=num_classes,
            widths=widths,
            deep_supervision=deep_supervision,
        )

    @property
    def vit(self) -> SpadViT:
        """The encoder."""
        return self.pyramid.vit

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as plain types, that build this model as it is now."""
        return {
            "vit": self.vit.config(),
            "num_classes": self.num_classes,
            "widths": list(self.widths),
            "out_indices": list(self.pyramid.out_indices),
            "deep_supervision": self.decoder.deep_supervision,
        }

    def coarse_maps(self, x: Tensor, degree: int) -> list[Tensor]:
        """Maps of four blocks of the encoder."""
        return self.pyramid(x, degree)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute blocks and levels in the backward pass."""
        self.vit.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone."""
        return {f"pyramid.vit.{name}" for name in self.vit.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        return {
            "stem": r"^pyramid\.vit\.(?:cls_token|reg_token|pos_embed|patch_embed)",
            "blocks": [(r"^pyramid\.vit\.blocks\.(\d+)", None)],
        }
