"""spadnet's weights in the released key layout: the inverse of ``spadnet.weights.convert``."""

import re

from torch import Tensor

from spadnet.layers.spad_conv import fold_depth, fold_transposed

StateDict = dict[str, Tensor]


def released_tokenizer(state: StateDict) -> StateDict:
    """Name the weights of a soft tokenizer as released files do."""
    num_widths = 1 + len({m[1] for key in state if (m := re.match(r"encoder\.downs\.(\d+)", key))})
    released = {}
    for key, value in state.items():
        match key.split("."):
            case ["encoder", "stem", part, name]:
                new = f"encoder.0.{name}" if part == "conv" else f"encoder.1.1.{name}"
            case ["encoder", "downs", index, part, name]:
                first = 3 * (int(index) + 1)
                new = (
                    f"encoder.{first}.{name}" if part == "conv" else f"encoder.{first + 1}.1.{name}"
                )
            case ["encoder", "blocks", index, part, name]:
                new = f"encoder.{3 * (num_widths + int(index)) + (part == 'norm')}.{name}"
            case ["decoder", "blocks", index, part, name]:
                new = f"decoder.{3 * int(index) + (part == 'norm')}.{name}"
            case ["decoder", "ups", index, "up", name]:
                new = f"decoder.{6 + int(index)}.transposed_conv.{name}"
            case ["decoder", "ups", index, "block", part, name]:
                new = f"decoder.{6 + int(index)}.conv.{int(part == 'norm')}.{name}"
            case ["decoder", "head", name]:
                new = f"decoder.{5 + num_widths}.{name}"
            case ["quantizer", "codebook"]:
                new = "quantize.embedding.weight"
            case _:
                new = key.replace("quantizer.", "quantize.")
        released[new] = value
    return released


def released_vit(state: StateDict, *, fused_qkv: bool = False) -> StateDict:
    """Name the weights of a ViT as released files do."""
    released = {}
    for key, value in state.items():
        if key.endswith("attn.qkv.weight") and not fused_qkv:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                released[key.replace("qkv", f"{name}_proj")] = part.contiguous()
        else:
            released[key.replace("mlp.norm.", "mlp.ffn_ln.")] = value
    return released


def released_mim(state: StateDict) -> StateDict:
    """Name the weights of a masked image model as released files do."""
    vit = {key.removeprefix("vit."): v for key, v in state.items() if key.startswith("vit.")}
    rest = {key: v for key, v in state.items() if not key.startswith("vit.")}
    return released_vit(vit) | {key.replace("head.", "mim_head."): v for key, v in rest.items()}


def released_pyramid(state: StateDict, *, degree: int) -> StateDict:
    """Name the weights of a pyramid as released files do, its depth fixed by the degree."""
    vit = {key.removeprefix("vit."): v for key, v in state.items() if key.startswith("vit.")}
    kernel = vit["patch_embed.proj.weight"]
    level = kernel.shape[-1].bit_length() - 1
    vit["patch_embed.proj.weight"] = fold_depth(kernel, stride=kernel.shape[-1], degree=degree)
    names = {
        "up4_first": ("fpn.0.0", degree - level + 1),
        "up4_norm": ("fpn.0.1", 0),
        "up4_second": ("fpn.0.3", degree - level + 2),
        "up8": ("fpn.1", degree - level + 1),
    }
    released = released_vit(vit)
    for key, value in state.items():
        part, _, name = key.rpartition(".")
        if part in names:
            new, pending = names[part]
            if value.ndim == 5:
                value = fold_transposed(
                    value, stride=2, degree=max(pending, 0), reduction="mean"
                ).contiguous()
            released[f"{new}.{name}"] = value
        elif key.startswith("norms."):
            released[key] = value
    return released
