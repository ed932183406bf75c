"""The network classes that nnU-Net's plans name: a spacing-aware one at the degree of the plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from spadnet.integrations.nnunet.plans import spad_strides
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.unet_parts import UNetDecoder
from spadnet.models.vit import SpadViT


class PlannedUNet(nn.Module):
    """SPAD-UNet at one degree, in the manner of ``dynamic_network_architectures``.

    >>> from spadnet.integrations.nnunet.plans import spad_strides
    >>> unet = PlannedUNet(1, 3, n_stages=3, features_per_stage=(8, 16, 32), degree=2,
    ...     strides=spad_strides(3, 2), n_conv_per_stage=2, n_conv_per_stage_decoder=2)
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        n_stages: int,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        n_conv_per_stage: int | Sequence[int],
        n_conv_per_stage_decoder: int | Sequence[int],
        degree: int | None,
        deep_supervision: bool = False,
    ) -> None:
        """Build the network; the arguments have nnU-Net's names.

        Args:
            input_channels: Channels of the image.
            num_classes: Channels of the logits.
            n_stages: Number of levels.
            features_per_stage: Channels of each level, the finest first.
            strides: Strides before each level. They follow from the degree; nnU-Net reads them.
            n_conv_per_stage: Convolutions of each level of the encoder.
            n_conv_per_stage_decoder: Convolutions of each level of the decoder, the coarsest first.
            degree: Degree of anisotropy, None for 2D.
            deep_supervision: Whether to return logits of all levels of the decoder.
        """
        super().__init__()
        if len(features_per_stage) != n_stages:
            raise ValueError(f"{n_stages} levels need as many widths, got {features_per_stage}")
        expected = spad_strides(n_stages, degree)
        if [list(stride) for stride in strides] != expected:
            raise ValueError(f"strides {strides} are not those of degree {degree}: {expected}")
        counts = n_conv_per_stage_decoder
        self.degree = degree
        self.unet = SpadUNet(
            in_chans=input_channels,
            num_classes=num_classes,
            features=features_per_stage,
            num_convs=n_conv_per_stage,
            num_convs_decoder=counts if isinstance(counts, int) else counts[::-1],
            deep_supervision=deep_supervision,
        )

    @property
    def decoder(self) -> UNetDecoder:
        """The decoder, whose ``deep_supervision`` nnU-Net switches."""
        return self.unet.decoder

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits of [B, C, D, H, W], or [B, C, H, W] in 2D; see :class:`SpadUNet`."""
        return self.unet(x, self.degree)


class PlannedVitSegmentor(nn.Module):
    """SPAD-ViT that segments at one degree, in the manner of ``dynamic_network_architectures``.

    nnU-Net's images have mean 0 and standard deviation 1. That is what a SPAD-ViT makes of
    intensities in [0, 1]: its own normalisation is undone before.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        vit: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        degree: int | None,
        deep_supervision: bool = False,
    ) -> None:
        """Build the network.

        Args:
            input_channels: Channels of the image.
            num_classes: Channels of the logits.
            vit: Constructor arguments of the encoder.
            strides: Strides before each level. They follow from the degree; nnU-Net reads them.
            degree: Degree of anisotropy, None for 2D.
            deep_supervision: Whether to return logits of all levels of the decoder.
        """
        super().__init__()
        expected = spad_strides(len(strides), degree)
        if [list(stride) for stride in strides] != expected:
            raise ValueError(f"strides {strides} are not those of degree {degree}: {expected}")
        arguments = dict(vit)
        if arguments["in_chans"] != input_channels:  # with the normalisation of so many channels
            arguments |= {"in_chans": input_channels, "mean": None, "std": None}
        self.degree = degree
        self.segmentor = VitSegmentor(
            SpadViT(**arguments), num_classes=num_classes, deep_supervision=deep_supervision
        )

    @property
    def decoder(self) -> UNetDecoder:
        """The decoder, whose ``deep_supervision`` nnU-Net switches."""
        return self.segmentor.decoder

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits of [B, C, D, H, W], or [B, C, H, W] in 2D."""
        vit = self.segmentor.vit
        mean, std = vit.get_buffer("mean").to(x.dtype), vit.get_buffer("std").to(x.dtype)
        if x.ndim == 4:
            mean, std = mean.squeeze(2), std.squeeze(2)
        return self.segmentor(x * std + mean, self.degree)
