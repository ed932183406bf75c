"""SPAD-UNet: the U-Net that nnU-Net plans for a spacing, with one set of weights for all spacings.

Two 3x3x3 convolutions with InstanceNorm and LeakyReLU a level, downsampling by strided convolutions
and upsampling by transposed ones, skip connections, a head at every level of the decoder. Kernels
and strides are (1, 3, 3) and (1, 2, 2) until pixels are as large as slices are thick.

Source: nnU-Net (Isensee et al., 2021) made spacing-aware as in SPAD-Nets (arXiv 2312.07630).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spadnet.models.unet_parts import UNetDecoder, UNetEncoder, init_he, voxel_head
from spadnet.spacing import MAX_DEGREE, required_multiple


class SpadUNet(nn.Module):
    """U-Net for 2D and 3D images of any spacing.

    >>> unet = SpadUNet(in_chans=1, num_classes=3, features=(8, 16, 32))
    >>> unet(torch.rand(2, 1, 2, 32, 32), degree=2).shape
    torch.Size([2, 3, 2, 32, 32])
    """

    def __init__(
        self,
        *,
        in_chans: int = 1,
        num_classes: int = 2,
        features: Sequence[int] = (32, 64, 128, 256, 320),
        num_convs: int | Sequence[int] = 2,
        num_convs_decoder: int | Sequence[int] = 2,
        deep_supervision: bool = False,
    ) -> None:
        """Build the model; the defaults are nnU-Net's widths.

        Args:
            in_chans: Channels of the image.
            num_classes: Channels of the logits.
            features: Channels of each level, the finest first.
            num_convs: Convolutions of each level of the encoder.
            num_convs_decoder: Convolutions of each level of the decoder.
            deep_supervision: Whether to return logits of all levels of the decoder; where not,
                the heads of coarser levels are frozen.
        """
        super().__init__()
        if len(features) < 2:
            raise ValueError(f"a U-Net has at least two levels, got features={tuple(features)}")
        self.in_chans = in_chans
        self.features = tuple(features)
        self.num_features = self.features[0]
        self.stride = 2 ** (len(features) - 1)
        self.num_convs = _per_level(num_convs, len(features))
        self.num_convs_decoder = _per_level(num_convs_decoder, len(features) - 1)
        self.encoder = UNetEncoder(in_chans, self.features, self.num_convs)
        self.decoder = UNetDecoder(
            self.features,
            self.num_convs_decoder,
            num_classes=num_classes,
            deep_supervision=deep_supervision,
        )
        self.feature_info = [
            {"module": f"encoder.stages.{level}", "num_chs": width, "reduction": 2**level}
            for level, width in enumerate(self.features)
        ]
        self.apply(init_he)
        self._freeze_idle_heads()

    @property
    def num_classes(self) -> int:
        """Channels of the logits."""
        head = self.decoder.heads[0]
        assert isinstance(head, nn.Conv3d)
        return head.out_channels

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as plain types, that build this model as it is now."""
        return {
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "features": list(self.features),
            "num_convs": list(self.num_convs),
            "num_convs_decoder": list(self.num_convs_decoder),
            "deep_supervision": self.decoder.deep_supervision,
        }

    def forward_features(
        self, x: Tensor, degree: int, out_degree: int | None = None
    ) -> list[Tensor]:
        """Return the decoder's maps, the finest first.

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W].
            degree: Degree of anisotropy.
            out_degree: That of the maps, see :meth:`forward`.
        """
        least = degree if degree >= MAX_DEGREE else 0  # a single slice has no thinner ones
        if out_degree is not None and not least <= out_degree <= degree:
            raise ValueError(f"out_degree must be {least} to the degree {degree}, got {out_degree}")
        if x.ndim != 5 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"the model takes [B, {self.in_chans}, D, H, W] or [B, {self.in_chans}, H, W], "
                f"got {list(x.shape)}"
            )
        steps = required_multiple(degree, stride=self.stride)
        if any(n % step or n == 0 for n, step in zip(x.shape[2:], steps, strict=True)):
            raise ValueError(
                f"size {tuple(x.shape[2:])} is not a multiple of {steps}, which degree {degree} "
                "requires"
            )
        return self.decoder.forward_features(self.encoder(x, degree), degree, out_degree)

    def forward_head(self, decoded: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Turn the decoder's maps into logits."""
        return self.decoder.forward_head(decoded)

    def forward(
        self, x: Tensor, degree: int | None = None, *, out_degree: int | None = None
    ) -> Tensor | list[Tensor]:
        """Return logits [B, num_classes, D * 2**(degree - out_degree), H, W].

        Under deep supervision, a list of them: the finest level first, each further one half as
        large in-plane. A batch of 2D images [B, C_in, H, W] needs no degree and gives 2D logits.

        Args:
            x: Volumes in [0, 1], sizes multiples of ``required_multiple(degree, stride=stride)``.
            degree: Degree of anisotropy.
            out_degree: Degree of the logits, by default that of the volumes; less decodes them on
                thinner slices, 0 on such as pixels are wide.
        """
        if x.ndim == 4:
            if out_degree is not None:
                raise ValueError(f"2D images have no thinner slices, got out_degree={out_degree}")
            planar = len(self.features)  # no level sees more than the one slice
            logits = self.forward_head(self.forward_features(x.unsqueeze(2), planar))
            return [y.squeeze(2) for y in logits] if isinstance(logits, list) else logits.squeeze(2)
        if degree is None:
            raise ValueError("a volume needs a degree: Spacing(z, y, x).degree()")
        return self.forward_head(self.forward_features(x, degree, out_degree))

    # --- timm's manners ---

    def get_classifier(self) -> nn.Module:
        """Return the head of the finest level."""
        return self.decoder.heads[0]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the heads of all levels by new ones."""
        like = next(self.decoder.parameters())
        heads = (voxel_head(width, num_classes).to(like) for width in self.features[:-1])
        self.decoder.heads = nn.ModuleList(heads).apply(init_he)
        self._freeze_idle_heads()

    def _freeze_idle_heads(self) -> None:
        """Freeze heads whose logits nobody sees: DDP must not wait for them."""
        if not self.decoder.deep_supervision:
            self.decoder.heads[1:].requires_grad_(False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute levels in the backward pass."""
        self.encoder.grad_checkpointing = self.decoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        return {"stem": r"^encoder\.stages\.0", "blocks": [(r"^encoder\.stages\.(\d+)", None)]}


def _per_level(count: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Convolutions of each level."""
    counts = (count,) * num_levels if isinstance(count, int) else tuple(count)
    if len(counts) != num_levels or min(counts) < 1:
        raise ValueError(f"{num_levels} levels need as many positive counts, got {counts}")
    return counts


# --- sizes ---


def spad_unet_tiny(
    *,
    in_chans: int = 1,
    num_classes: int = 2,
    features: Sequence[int] = (8, 16, 32, 64, 80),
    deep_supervision: bool = False,
) -> SpadUNet:
    """SPAD-UNet for small machines."""
    return SpadUNet(
        in_chans=in_chans,
        num_classes=num_classes,
        features=features,
        deep_supervision=deep_supervision,
    )


def spad_unet_small(
    *,
    in_chans: int = 1,
    num_classes: int = 2,
    features: Sequence[int] = (16, 32, 64, 128, 160),
    deep_supervision: bool = False,
) -> SpadUNet:
    """SPAD-UNet with half of nnU-Net's widths."""
    return SpadUNet(
        in_chans=in_chans,
        num_classes=num_classes,
        features=features,
        deep_supervision=deep_supervision,
    )


def spad_unet_base(
    *,
    in_chans: int = 1,
    num_classes: int = 2,
    features: Sequence[int] = (32, 64, 128, 256, 320),
    deep_supervision: bool = False,
) -> SpadUNet:
    """SPAD-UNet with nnU-Net's widths."""
    return SpadUNet(
        in_chans=in_chans,
        num_classes=num_classes,
        features=features,
        deep_supervision=deep_supervision,
    )
