"""The frozen tokenizer as stage 2 needs it: an image goes in, logits of the codes come out."""

import copy

import torch
from torch import Tensor, nn

from spadnet.layers.winograd import conv_transformed, is_allowed, is_wide, transform_kernel
from spadnet.models.autoencoder import ConvBlock, Encoder
from spadnet.models.plain import PlainConv3d, fold_conv
from spadnet.models.quantizer import NearestQuantizer, SoftQuantizer
from spadnet.models.tokenizer import Tokenizer


class FrozenTargets:
    """Logits of a frozen tokenizer's codes, with everything done beforehand that can be.

    For each degree it keeps the encoder as plain convolutions, channels last, in the precision that
    is asked for: taps are folded, intensities scaled by the first kernel, and a grey image passes a
    kernel that was summed over its channels. It is no module, so that it cannot end up in a
    checkpoint or an optimiser. The tokenizer must not change any more.

    >>> targets = FrozenTargets(spad_vt_tiny())
    >>> targets(torch.rand(2, 1, 8, 32, 32), degree=2).shape
    torch.Size([2, 8, 256])
    """

    def __init__(self, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32) -> None:
        """Hold the tokenizer.

        Args:
            tokenizer: A trained tokenizer.
            dtype: Precision of the encoder, bfloat16 where the hardware has it.
        """
        self.tokenizer = tokenizer
        self.dtype = dtype
        self._encoders: dict[tuple[int, bool, torch.device], nn.Sequential] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor, degree: int) -> Tensor:
        """Logits [B, L, K] of volumes [B, C_in, D, H, W] in [0, 1]; one channel stands for all.

        Raises:
            ValueError: If channels or sizes do not fit the tokenizer and the degree.
        """
        grey = image.shape[1] == 1
        colour = image.expand(-1, self.tokenizer.in_chans, -1, -1, -1) if grey else image
        self.tokenizer.check_input(colour, degree)
        if not isinstance(self.tokenizer.encoder, Encoder):  # a VQGAN, which nothing can speed up
            return self.tokenizer.token_logits(colour, degree)
        key = degree, grey, image.device
        if key not in self._encoders:
            self._encoders[key] = self._build(degree, grey=grey, device=image.device)
        with torch.autocast(image.device.type, enabled=False):
            return self._encoders[key](image.to(self.dtype))

    def _build(self, degree: int, *, grey: bool, device: torch.device) -> nn.Sequential:
        """Chain copies of the encoder's layers and of what makes logits."""
        encoder = self.tokenizer.encoder
        assert isinstance(encoder, Encoder)
        layers: list[nn.Module] = []
        level = 0
        for down in (encoder.stem, *encoder.downs):
            layers += [fold_conv(down.conv, max(degree - level, 0)), down.norm, down.act]
            level += down.conv.stride.bit_length() - 1
        stem = layers[0]
        assert isinstance(stem, PlainConv3d)
        _take_unit_intensities(stem, grey=grey)
        for block in encoder.blocks:
            assert isinstance(block, ConvBlock)
            conv = fold_conv(block.conv, max(degree - level, 0))
            fast = is_allowed(device, self.dtype) and is_wide(conv.weight)
            layers += [_WinogradConv3d(conv) if fast else conv, block.norm, block.act]
        layers.append(_Logits(self.tokenizer.quantizer))
        chain = copy.deepcopy(nn.Sequential(*layers)).to(device=device, dtype=self.dtype)
        return chain.to(memory_format=torch.channels_last_3d).eval().requires_grad_(False)


class _Logits(nn.Module):
    """Logits [B, L, K] of latents [B, C, d, h, w]."""

    def __init__(self, quantizer: SoftQuantizer | NearestQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> Tensor:
        return self.quantizer.logits(z).flatten(1, 3)


class _WinogradConv3d(nn.Module):
    """A 3x3x3 or 1x3x3 convolution whose kernel is transformed once."""

    kernel: Tensor

    def __init__(self, conv: PlainConv3d) -> None:
        super().__init__()
        self.register_buffer("kernel", transform_kernel(conv.weight.detach()))
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return conv_transformed(x, self.kernel, self.bias)


@torch.no_grad()
def _take_unit_intensities(stem: PlainConv3d, *, grey: bool) -> None:
    """Let a kernel that takes 2x - 1 take x, and one channel for all where images are grey.

    Exact, since the first layer has no padding.
    """
    assert stem.bias is not None
    stem.bias -= stem.weight.flatten(1).sum(1)
    weight = 2 * stem.weight
    stem.weight = nn.Parameter(weight.sum(1, keepdim=True) if grey else weight)
    stem.in_channels = stem.weight.shape[1]
