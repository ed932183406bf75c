"""Released PUMIT weights: tokenizer, ViT, masked image model, feature pyramid."""

import re
from collections.abc import Mapping

from torch import Tensor

from spadnet.layers.spad_conv import Reduction
from spadnet.weights.convert.rename import VIT_RULES, StateDict, join_qkv, rename, select


def convert_released_tokenizer(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a released tokenizer (``encoder.{i}``, ``decoder.{i}``, ``quantize``).

    Args:
        state: Released state dict of a soft tokenizer; its transposed convolutions sum depth taps.

    Returns:
        State dict of a :class:`spadnet.models.tokenizer.Tokenizer` with ``reduction="sum"``.
    """
    indices = [int(m[1]) for key in state if (m := re.match(r"encoder\.(\d+)\.1\.weight", key))]
    num_widths = len(indices)
    first_block = 3 * num_widths
    head = max((int(m[1]) for key in state if (m := re.match(r"decoder\.(\d+)\.", key))), default=0)

    def encoder(match: re.Match[str]) -> str:
        index, parameter = int(match[1]), match[3]
        place, part = divmod(index, 3)
        if index >= first_block:
            return (
                f"encoder.blocks.{place - num_widths}.{'conv' if part == 0 else 'norm'}.{parameter}"
            )
        name = "stem" if place == 0 else f"downs.{place - 1}"
        return f"encoder.{name}.{'conv' if part == 0 else 'norm'}.{parameter}"

    def decoder(match: re.Match[str]) -> str:
        index, parameter = int(match[1]), match[2]
        if index == head:
            return f"decoder.head.{parameter}"
        place, part = divmod(index, 3)
        return f"decoder.blocks.{place}.{'conv' if part == 0 else 'norm'}.{parameter}"

    def up(match: re.Match[str]) -> str:
        place = int(match[1]) - 6
        part = {"transposed_conv": "up", "conv.0": "block.conv", "conv.1": "block.norm"}[match[2]]
        return f"decoder.ups.{place}.{part}.{match[3]}"

    return rename(
        state,
        [
            (r"encoder\.(\d+)\.(1\.)?(weight|bias)", encoder),
            (r"decoder\.(\d+)\.(weight|bias)", decoder),
            (r"decoder\.(\d+)\.(transposed_conv|conv\.0|conv\.1)\.(weight|bias)", up),
            (r"quantize\.proj\.(weight|bias)", r"quantizer.proj.\1"),
            (r"quantize\.embedding\.weight", "quantizer.codebook"),
        ],
    )


def convert_released_vit(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a released ViT into the state dict of a :class:`spadnet.models.vit.SpadViT`."""
    return rename(join_qkv(state), VIT_RULES)


def convert_released_mim(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a released MIM model into that of :class:`spadnet.models.mim.MaskedImageModel`.

    The tokenizer inside a released file (keys ``tokenizer.*``) goes through
    :func:`convert_released_tokenizer` on its own.
    """
    own = {k: v for k, v in state.items() if not k.startswith("tokenizer.")}
    heads = select(own, "mim_head.")
    vit = {k: v for k, v in own.items() if not k.startswith(("mim_head.", "mask_token"))}
    converted = {f"vit.{k}": v for k, v in convert_released_vit(vit).items()}
    converted |= {f"head.{k}": v for k, v in heads.items()}
    if "mask_token" in own:
        converted["mask_token"] = own["mask_token"]
    return converted


def convert_released_pyramid(
    state: Mapping[str, Tensor], *, patch_size: int = 16, reduction: Reduction = "mean"
) -> StateDict:
    """Convert a released feature pyramid with a fixed patch depth.

    Its kernels have the depth of one degree; they are inflated to isotropic ones that fold back to
    the same kernel at that degree.

    Args:
        state: Released state dict with ``fpn.*`` and ``norms.*`` beside the ViT's.
        patch_size: In-plane patch size.
        reduction: Reduction of the transposed convolutions of the model to be loaded.

    Returns:
        State dict of a :class:`spadnet.models.pyramid.Pyramid`.
    """

    def isotropic(weight: Tensor, *, transposed: bool) -> Tensor:
        depth, size = weight.shape[-3], weight.shape[-1]
        copies = size // depth
        scale = 1.0 if transposed and reduction == "mean" else 1 / copies
        return weight.repeat_interleave(copies, dim=-3) * scale

    vit = {k: v for k, v in state.items() if not k.startswith(("fpn.", "norms."))}
    vit["patch_embed.proj.weight"] = isotropic(vit["patch_embed.proj.weight"], transposed=False)
    converted = {f"vit.{k}": v for k, v in convert_released_vit(vit).items()}
    rest = {k: v for k, v in state.items() if k.startswith(("fpn.", "norms."))}
    rest = rename(
        rest,
        [
            (r"(norms\.\d\.(?:weight|bias))", r"\1"),
            (r"fpn\.0\.0\.(weight|bias)", r"up4_first.\1"),
            (r"fpn\.0\.1\.(weight|bias)", r"up4_norm.\1"),
            (r"fpn\.0\.3\.(weight|bias)", r"up4_second.\1"),
            (r"fpn\.1\.(weight|bias)", r"up8.\1"),
        ],
    )
    for key, value in rest.items():
        converted[key] = isotropic(value, transposed=True) if value.ndim == 5 else value
    return converted
