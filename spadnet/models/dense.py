"""Features at every place of an image, from a SPAD-ViT's pyramid or a SPAD-UNet's decoder."""

import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.layers.spad_conv import SpadConv3d
from spadnet.models.pyramid import Pyramid
from spadnet.models.segmentor import STRIDE, default_out_indices
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.vit import SpadViT
from spadnet.spacing import depth_stride, required_multiple


class VitDenseFeatures(nn.Module):
    """The maps of a ViT's pyramid and its final tokens, narrowed, brought to stride 4 and added up.

    Nothing but the ViT sees the image: whatever the features tell, it knows. Its class token passes
    on what it gathers from block to block, but the features do not ask for what it ends as; the
    feature of a whole image is the mean of the final tokens.

    >>> vit = SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=1)
    >>> import torch
    >>> VitDenseFeatures(vit)(torch.rand(1, 1, 4, 64, 64), degree=3).shape
    torch.Size([1, 32, 4, 16, 16])
    """

    stride = 4

    def __init__(self, vit: SpadViT, *, num_features: int = 32, width: int = 64) -> None:
        """Build the model.

        Args:
            vit: The encoder; its classifier is taken away.
            num_features: Channels of the features.
            width: Channels of the maps when they are added up.
        """
        super().__init__()
        vit.reset_classifier(0)
        self.pyramid = Pyramid(vit, out_indices=default_out_indices(len(vit.blocks)))
        vit.norm.requires_grad_(True)
        self.laterals = nn.ModuleList(SpadConv3d(vit.embed_dim, width, 1) for _ in range(5))
        self.act = nn.GELU()
        self.project = SpadConv3d(width, num_features, 1)

    @property
    def vit(self) -> SpadViT:
        """The encoder."""
        return self.pyramid.vit

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.vit.in_chans

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Return features [B, C, D / depth_stride(4, degree), H / 4, W / 4].

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W], sizes multiples of
                ``required_multiple(degree, stride=32)``.
            degree: Degree of anisotropy.
        """
        steps = required_multiple(degree, stride=STRIDE)
        if any(n % step or n == 0 for n, step in zip(x.shape[2:], steps, strict=True)):
            raise ValueError(
                f"size {tuple(x.shape[2:])} is not a multiple of {steps}, which degree {degree} "
                "requires"
            )
        vit = self.vit
        maps = vit.forward_intermediates(
            x, degree, indices=self.pyramid.out_indices, intermediates_only=True
        )
        tokens = vit.norm(maps[-1].movedim(1, -1)).movedim(-1, 1)
        maps = [*self.pyramid.resample(maps, degree), tokens]
        narrow = [lateral(m, 0) for lateral, m in zip(self.laterals, maps, strict=True)]
        total = narrow[0]
        for coarse in narrow[1:]:
            total = total + F.interpolate(coarse, size=total.shape[2:], mode="nearest")
        return self.project(self.act(total), 0)


class UNetDenseFeatures(nn.Module):
    """The finest map of a U-Net's decoder behind one 1x1x1 convolution."""

    stride = 1

    def __init__(self, unet: SpadUNet, *, num_features: int = 32) -> None:
        """Build the model.

        Args:
            unet: The U-Net; its heads, which nothing passes, are frozen.
            num_features: Channels of the features.
        """
        super().__init__()
        unet.decoder.heads.requires_grad_(False)
        self.unet = unet
        self.project = SpadConv3d(unet.num_features, num_features, 1)

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.unet.in_chans

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Return features [B, C, D, H, W] of volumes [B, C_in, D, H, W] in [0, 1]."""
        return self.project(self.unet.forward_features(x, degree)[0], 0)


def coarse_labels(labels: Tensor, *, stride: int, degree: int) -> Tensor:
    """Labels [B, d, h, w] in the middle of each cell of features of a stride.

    Args:
        labels: Labels of voxels, [B, D, H, W].
        stride: In-plane stride of the features.
        degree: Anisotropy of the image.
    """
    depth = depth_stride(stride, degree)
    return labels[:, depth // 2 :: depth, stride // 2 :: stride, stride // 2 :: stride]
