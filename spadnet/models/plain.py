"""Turn a spacing-aware network into an ordinary one for a single degree of anisotropy.

What remains are plain convolutions whose kernels and strides fit the spacing: the network that one
would have planned for that spacing alone, with the weights that serve all.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from spadnet.layers.patch_embed import PatchEmbed
from spadnet.layers.spad_conv import SpadConv3d, SpadConvTranspose3d, fold_depth, fold_transposed
from spadnet.models.autoencoder import Encoder
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import depth_stride, required_multiple

_Module = TypeVar("_Module", bound=nn.Module)
_Conv = TypeVar("_Conv", bound=nn.Conv3d | nn.ConvTranspose3d)

_PROBE_STRIDE = 32  # of a volume that is large enough for every network


class PlainConv3d(nn.Conv3d):
    """Convolution in the place of a SPAD convolution; it is told the degree and needs it not."""

    def forward(self, x: Tensor, degree: int = 0) -> Tensor:
        """Convolve [B, C_in, D, H, W]."""
        return super().forward(x)


class PlainConvTranspose3d(nn.ConvTranspose3d):
    """Transposed convolution in the place of a SPAD one; it needs no degree either."""

    def forward(self, x: Tensor, degree: int = 0) -> Tensor:  # type: ignore[override]
        """Upsample [B, C_in, d, h, w]."""
        return super().forward(x)


@torch.no_grad()
def fold_conv(conv: SpadConv3d, degree: int) -> PlainConv3d:
    """Fold a SPAD convolution for the degree at its input."""
    weight = fold_depth(conv.weight, stride=conv.stride, degree=degree)
    kernel_size = weight.shape[-1]
    overlaps = kernel_size not in (1, conv.stride)
    thick = overlaps and degree > 0
    plain = PlainConv3d(
        weight.shape[1],
        weight.shape[0],
        _kernel(weight),
        stride=(1 if thick else depth_stride(conv.stride, degree), conv.stride, conv.stride),
        padding=(int(overlaps and not thick), int(overlaps), int(overlaps)),
        bias=conv.bias is not None,
        device="meta",
    )
    return _with_weights(plain, weight, conv.bias)


@torch.no_grad()
def fold_conv_transpose(conv: SpadConvTranspose3d, degree: int) -> PlainConvTranspose3d:
    """Fold a transposed SPAD convolution for the degree at its output."""
    weight = fold_transposed(
        conv.weight, stride=conv.stride, degree=degree, reduction=conv.reduction
    )
    kernel_size = weight.shape[-1]
    overlaps = kernel_size != conv.stride
    thick = overlaps and degree > 0
    rest = int(kernel_size == 3)
    plain = PlainConvTranspose3d(
        weight.shape[0],
        weight.shape[1],
        _kernel(weight),
        stride=(1 if thick else depth_stride(conv.stride, degree), conv.stride, conv.stride),
        padding=(int(overlaps and not thick), int(overlaps), int(overlaps)),
        output_padding=(0 if thick else rest, rest, rest),
        bias=conv.bias is not None,
        device="meta",
    )
    return _with_weights(plain, weight, conv.bias)


@torch.no_grad()
def fold_patch_embed(embed: PatchEmbed, degree: int) -> nn.Conv3d:
    """Fold the kernel of a patch embedding for the degree of the image."""
    weight = fold_depth(embed.proj.weight, stride=embed.patch_size, degree=degree)
    kernel = _kernel(weight)
    plain = nn.Conv3d(weight.shape[1], weight.shape[0], kernel, stride=kernel, device="meta")
    return _with_weights(plain, weight, embed.proj.bias)


def _kernel(weight: Tensor) -> tuple[int, int, int]:
    k_z, k_y, k_x = weight.shape[2:]
    return k_z, k_y, k_x


def _with_weights(module: _Conv, weight: Tensor, bias: Tensor | None) -> _Conv:
    """Put copies of a weight and a bias into a module."""
    module.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())
    return module


def fold_network(model: _Module, degree: int) -> _Module:
    """Copy a network that is called as ``model(x, degree)`` and fold all its layers.

    The copy gives the same output at this degree, which it must still be told, and at no other.
    """
    plain = copy.deepcopy(model)
    modes = {module: module.training for module in plain.modules()}
    degrees = _layer_degrees(plain.eval(), degree)
    for module, mode in modes.items():
        module.training = mode
    for name, own in degrees.items():
        module = plain.get_submodule(name)
        folded: nn.Module
        if isinstance(module, PatchEmbed):
            module.proj = fold_patch_embed(module, own)
            continue
        if isinstance(module, SpadConv3d):
            folded = fold_conv(module, own)
        else:
            assert isinstance(module, SpadConvTranspose3d)
            folded = fold_conv_transpose(module, own)
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, folded)
    return plain


def _layer_degrees(model: nn.Module, degree: int) -> dict[str, int]:
    """Degree that each layer is told when the network is told ``degree``; found by a small run."""
    kinds = (SpadConv3d, SpadConvTranspose3d, PatchEmbed)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no spacing-aware layers")
    degrees: dict[str, int] = {}
    hooks = []
    for name, layer in layers.items():

        def remember(_: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
            degrees[name] = arguments[1]

        hooks.append(layer.register_forward_pre_hook(remember))
    first = next(iter(layers.values()))
    kernel = first.proj.weight if isinstance(first, PatchEmbed) else first.weight
    size = required_multiple(degree, stride=_PROBE_STRIDE)
    try:
        with torch.no_grad():
            model(kernel.new_zeros(1, kernel.shape[1], *size), degree)
    finally:
        for hook in hooks:
            hook.remove()
    return degrees


@torch.no_grad()
def sum_over_channels(model: nn.Module) -> None:
    """Let a folded network take a grey image [B, 1, D, H, W] as the same in all its channels.

    The first kernel is summed over its input channels, which is exact: that layer has no padding,
    so that a mean that was subtracted moves into its bias; in tokenizers all channels are alike.

    Raises:
        ValueError: If the model's first layer is not known.
    """
    if isinstance(model, Tokenizer):
        stem = model.encoder.stem.conv if isinstance(model.encoder, Encoder) else model.encoder.stem
        stem.weight = nn.Parameter(stem.weight.sum(1, keepdim=True))
        model.in_chans = 1
        if isinstance(stem, PlainConv3d):
            stem.in_channels = 1
        return
    if not isinstance(model, SpadViT):
        raise ValueError(f"the first layer of {type(model).__name__} is not known")
    proj = model.patch_embed.proj
    assert proj.bias is not None
    mean, std = model.get_buffer("mean"), model.get_buffer("std")
    scaled = proj.weight / std
    proj.bias = nn.Parameter(proj.bias - (scaled * mean).flatten(1).sum(1))
    proj.weight = nn.Parameter(scaled.sum(1, keepdim=True))
    proj.in_channels = model.in_chans = 1
    model.intensity_mean, model.intensity_std = (0.0,), (1.0,)
    model.register_intensity()
    model.to(proj.weight.device)
