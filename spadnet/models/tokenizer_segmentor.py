"""A tokenizer's encoder that segments: its maps, a U-Net decoder, and a stem at full resolution."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spadnet.models.autoencoder import Encoder
from spadnet.models.pyramid import EncoderPyramid
from spadnet.models.segmentor import Segmentor

WIDTHS = (16, 32, 64, 96, 128)


class TokenizerSegmentor(Segmentor):
    """Maps at strides 1 and 2 from convolutions, 4 to 16 from the encoder of a visual tokenizer.

    >>> import torch
    >>> segmentor = TokenizerSegmentor(in_chans=1, encoder_widths=(8, 16, 24), num_classes=3)
    >>> segmentor(torch.rand(1, 1, 4, 32, 32), degree=2).shape
    torch.Size([1, 3, 4, 32, 32])
    """

    pyramid: EncoderPyramid

    def __init__(
        self,
        *,
        in_chans: int = 1,
        encoder_widths: Sequence[int] = (128, 256, 512),
        num_classes: int,
        widths: Sequence[int] = WIDTHS,
        deep_supervision: bool = False,
    ) -> None:
        """Build the model; the defaults are the published tokenizer's.

        Args:
            in_chans: Channels of the image.
            encoder_widths: Channels of the encoder at strides 4, 8, 16.
            num_classes: Channels of the logits.
            widths: Channels of the decoder's levels, the finest first: two more than the encoder's.
            deep_supervision: Whether to return logits of all levels of the decoder; where not,
                the heads of coarser levels are frozen.
        """
        super().__init__(
            EncoderPyramid(Encoder(in_chans, encoder_widths)),
            in_chans=in_chans,
            num_classes=num_classes,
            widths=widths,
            deep_supervision=deep_supervision,
        )

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as plain types, that build this model as it is now."""
        return {
            "in_chans": self.in_chans,
            "encoder_widths": list(self.pyramid.widths),
            "num_classes": self.num_classes,
            "widths": list(self.widths),
            "deep_supervision": self.decoder.deep_supervision,
        }

    def coarse_maps(self, x: Tensor, degree: int) -> list[Tensor]:
        """Maps of the encoder, which takes intensities in [-1, 1]."""
        return self.pyramid(2 * x - 1, degree)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute layers and levels in the backward pass."""
        self.pyramid.encoder.grad_checkpointing = enable
        self.decoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        return {
            "stem": r"^pyramid\.encoder\.stem",
            "blocks": [
                (r"^pyramid\.encoder\.downs\.(\d+)", None),
                (r"^pyramid\.encoder\.blocks", (99999,)),
            ],
        }
