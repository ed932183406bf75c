"""A SPAD-ViT that segments: its feature pyramid, a U-Net decoder, and a stem at full resolution."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spadnet.layers.spad_conv import SpadConv3d
from spadnet.models.pyramid import Pyramid
from spadnet.models.spad_unet import ConvNormAct, UNetDecoder, init_he
from spadnet.models.vit import SpadViT
from spadnet.spacing import MAX_DEGREE, required_multiple

STRIDE = 32
WIDTHS = (16, 32, 64, 96, 128, 160)


def default_out_indices(depth: int) -> list[int]:
    """Blocks of a ViT that feed a pyramid: a third, a half, two thirds and all of the way.

    >>> default_out_indices(12)
    [3, 5, 7, 11]
    """
    return [max(depth * n // 12 - 1, 0) for n in (4, 6, 8, 12)]


class VitSegmentor(nn.Module):
    """Maps at strides 1 and 2 from convolutions, 4 to 32 from the ViT, joined from coarse to fine.

    >>> vit = SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=1)
    >>> segmentor = VitSegmentor(vit, num_classes=3, out_indices=(0, 0, 1, 1))
    >>> import torch
    >>> segmentor(torch.rand(1, 1, 4, 64, 64), degree=3).shape
    torch.Size([1, 3, 4, 64, 64])
    """

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
        super().__init__()
        if len(widths) != 6:
            raise ValueError(f"the decoder has six levels, got widths={tuple(widths)}")
        if vit.patch_embed.patch_size != 16:
            raise ValueError(f"the pyramid takes patches of 16, got {vit.patch_embed.patch_size}")
        depth = len(vit.blocks)
        if out_indices is None:
            out_indices = default_out_indices(depth)
        vit.reset_classifier(0)
        self.num_classes = num_classes
        self.widths = tuple(widths)
        self.pyramid = Pyramid(vit, out_indices=out_indices)
        self.stem1 = ConvNormAct(vit.in_chans, widths[0])
        self.stem2 = ConvNormAct(widths[0], widths[1], stride=2)
        self.laterals = nn.ModuleList(SpadConv3d(vit.embed_dim, width, 1) for width in widths[2:])
        self.decoder = UNetDecoder(
            widths, (2,) * 5, num_classes=num_classes, deep_supervision=deep_supervision
        )
        for part in (self.stem1, self.stem2, self.laterals, self.decoder):
            part.apply(init_he)
        if not deep_supervision:
            self.decoder.heads[1:].requires_grad_(False)

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

    def forward(self, x: Tensor, degree: int | None = None) -> Tensor | list[Tensor]:
        """Return logits [B, num_classes, D, H, W].

        Under deep supervision, a list of them: the finest level first, each further one half as
        large in-plane.

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W], sizes multiples of
                ``required_multiple(degree, stride=32)``; or [B, C_in, H, W] for 2D.
            degree: Degree of anisotropy; 2D images need none.
        """
        if x.ndim == 4:
            logits = self.forward(x.unsqueeze(2), MAX_DEGREE)
            return [y.squeeze(2) for y in logits] if isinstance(logits, list) else logits.squeeze(2)
        if degree is None:
            raise ValueError("a volume needs a degree: Spacing(z, y, x).degree()")
        steps = required_multiple(degree, stride=STRIDE)
        if any(n % step or n == 0 for n, step in zip(x.shape[2:], steps, strict=True)):
            raise ValueError(
                f"size {tuple(x.shape[2:])} is not a multiple of {steps}, which degree {degree} "
                "requires"
            )
        fine = self.stem1(x, degree)
        maps = [fine, self.stem2(fine, degree)]
        for index, (lateral, coarse) in enumerate(
            zip(self.laterals, self.pyramid(x, degree), strict=True)
        ):
            maps.append(lateral(coarse, max(degree - 2 - index, 0)))
        return self.decoder(maps, degree)

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
