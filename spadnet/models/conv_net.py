"""A small convolutional classifier whose strides follow the spacing: the baseline from scratch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spadnet.layers.spad_conv import SpadConv3d, spad_max_pool3d
from spadnet.spacing import MAX_DEGREE


class _Stage(nn.Module):
    """Two convolutions with batch norm; the residual is added where the widths agree."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SpadConv3d(in_channels, out_channels, 3, bias=False)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = SpadConv3d(out_channels, out_channels, 3, bias=False)
        self.norm2 = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor, degree: int) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x, degree)))
        return torch.relu(x + self.norm2(self.conv2(x, degree)))


class SpadConvNet(nn.Module):
    """Stages of spacing-aware convolutions, halved in between, then the mean and a classifier.

    >>> SpadConvNet(in_chans=1, num_classes=2, widths=(8, 16))(torch.rand(1, 1, 32, 32)).shape
    torch.Size([1, 2])
    """

    def __init__(
        self,
        *,
        in_chans: int = 1,
        num_classes: int = 0,
        widths: Sequence[int] = (16, 32, 64, 96),
        first_stride: int = 1,
        drop_rate: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Build the model.

        Args:
            in_chans: Channels of the image.
            num_classes: Width of the classifier's output, 0 for features only.
            widths: Channels of the stages.
            first_stride: In-plane patch size of the first layer, a power of two; 1 for none.
            drop_rate: Dropout before the classifier.
            mean: Mean per channel subtracted from intensities in [0, 1].
            std: Standard deviation per channel they are divided by.
        """
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.widths = tuple(widths)
        self.first_stride = first_stride
        self.num_features = self.widths[-1]
        self.stride = first_stride << (len(self.widths) - 1)
        self.intensity_mean = tuple(map(float, [0.5] * in_chans if mean is None else mean))
        self.intensity_std = tuple(map(float, [0.25] * in_chans if std is None else std))
        self.register_intensity()
        first = self.widths[0] if first_stride > 1 else in_chans
        self.stem = (
            SpadConv3d(in_chans, first, first_stride, stride=first_stride)
            if first_stride > 1
            else None
        )
        inputs = (first, *self.widths[:-1])
        self.stages = nn.ModuleList(_Stage(i, o) for i, o in zip(inputs, self.widths, strict=True))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def register_intensity(self) -> None:
        """Make the buffers ``mean`` and ``std``; needed again after a build on the meta device."""
        for name, values in (("mean", self.intensity_mean), ("std", self.intensity_std)):
            if len(values) != self.in_chans:
                raise ValueError(f"{name} has {len(values)} values for {self.in_chans} channels")
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1, 1), persistent=False)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as plain types, that build this model as it is now."""
        return {
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "widths": list(self.widths),
            "first_stride": self.first_stride,
            "drop_rate": self.head_drop.p,
            "mean": list(self.intensity_mean),
            "std": list(self.intensity_std),
        }

    def forward_features(self, x: Tensor, degree: int | None = None) -> Tensor:
        """Return features [B, C, d, h, w] of an image in [0, 1].

        Args:
            x: [B, C_in, D, H, W], or [B, C_in, H, W] for 2D.
            degree: Degree of anisotropy; 2D images need none.
        """
        if x.ndim == 4:
            x, degree = x.unsqueeze(2), MAX_DEGREE
        if x.ndim != 5 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"the model takes [B, {self.in_chans}, D, H, W] or [B, {self.in_chans}, H, W], "
                f"got {list(x.shape)}"
            )
        if degree is None:
            raise ValueError("a volume needs a degree: Spacing(z, y, x).degree()")
        x = (x - self.get_buffer("mean").to(x.dtype)) / self.get_buffer("std").to(x.dtype)
        level = self.first_stride.bit_length() - 1
        if self.stem is not None:
            x = self.stem(x, degree)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = spad_max_pool3d(x, max(degree - level, 0))
                level += 1
            x = stage(x, max(degree - level, 0))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Average features [B, C, d, h, w] and classify them; ``pre_logits`` stops before."""
        x = self.head_drop(x.mean((2, 3, 4)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, degree: int | None = None) -> Tensor:
        """Return logits [B, num_classes], or mean features [B, C] without a classifier."""
        return self.forward_head(self.forward_features(x, degree))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}


def spad_conv_tiny(
    *,
    in_chans: int = 1,
    num_classes: int = 0,
    widths: Sequence[int] = (16, 32, 64, 96),
    first_stride: int = 1,
    drop_rate: float = 0.0,
) -> SpadConvNet:
    """Convolutional classifier for small images and small machines."""
    return SpadConvNet(
        in_chans=in_chans,
        num_classes=num_classes,
        widths=widths,
        first_stride=first_stride,
        drop_rate=drop_rate,
    )
