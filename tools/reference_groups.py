"""What each kind of reference group means in spadnet: settings and tensors in, outputs by name out.

The folder's form is that of the released code; state dicts go through ``spadnet.weights.convert``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from spadnet.layers.patch_embed import resample_position_grid
from spadnet.layers.rope import RotaryEmbedding3d, rotate
from spadnet.layers.spad_conv import spad_conv3d, spad_conv_transpose3d
from spadnet.losses.mim import soft_cross_entropy
from spadnet.losses.tokenizer import entropy_loss, mean_probability, prior_loss
from spadnet.models.mim import MaskedImageModel
from spadnet.models.pyramid import Pyramid
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import IMAGENET_MEAN, IMAGENET_STD, SpadViT
from spadnet.weights.convert import (
    StateDict,
    convert_released_mim,
    convert_released_pyramid,
    convert_released_tokenizer,
    convert_released_vit,
    select,
)

Settings = Mapping[str, Any]
Compute = Callable[[Settings, StateDict], StateDict]  # a case and its inputs -> outputs by name


def expect(settings: Settings, key: str, wanted: Any) -> None:
    """Raise if a setting is there and has a value for which spadnet has no form."""
    if settings.get(key, wanted) != wanted:
        raise ValueError(f"{key}={settings[key]!r} has no counterpart, only {wanted!r}")


# --- layers ---


def conv_group(_: Settings, __: StateDict) -> Compute:
    def compute(case: Settings, inputs: StateDict) -> StateDict:
        kernel_size, stride = case["kernel_size"], case["stride"]
        expect(case, "padding", int(kernel_size not in (1, stride)))
        level = case["num_downsamples"]
        transposed = case.get("transposed", False)
        if transposed:  # the degree is that of the high-resolution side, the output
            level -= stride.bit_length() - 1
        degree = max(case["degree_of_anisotropy"] - level, 0)
        x, weight, bias = inputs["x"], inputs["weight"], inputs.get("bias")
        if transposed:
            y = spad_conv_transpose3d(
                x, weight, bias, stride=stride, degree=degree, reduction="sum"
            )
        else:
            y = spad_conv3d(x, weight, bias, stride=stride, degree=degree)
        return {"y": y}

    return compute


def rope_group(_: Settings, __: StateDict) -> Compute:
    def compute(case: Settings, inputs: StateDict) -> StateDict:
        rope = RotaryEmbedding3d(case["head_dim"], **rope_arguments(case, ""))
        cos, sin = rope(case["grid"], inputs["q"].device)
        out = rotate(inputs["q"].transpose(1, 2), cos, sin).transpose(1, 2)  # [B, L, heads, d]
        return {"cos": cos, "sin": sin, "out": out}

    return compute


def rope_arguments(settings: Settings, prefix: str) -> dict[str, Any]:
    """Arguments ``base``, ``depth_base`` and ``rescale`` of rotary embeddings."""
    expect(settings, f"{prefix}merge_hw", True)
    depth_base, base, base_x = settings[f"{prefix}base"]
    if base != base_x:
        raise ValueError(f"{prefix}base {settings[f'{prefix}base']} differs between y and x")
    return {
        "base": base,
        "depth_base": depth_base,
        "rescale": settings[f"{prefix}rescale_shape"],
    }


def resample_group(_: Settings, __: StateDict) -> Compute:
    def compute(case: Settings, inputs: StateDict) -> StateDict:
        if list(inputs["x"].shape[2:]) != list(case["src"]):
            raise ValueError(f"x is {list(inputs['x'].shape)}, the case says {case['src']}")
        return {"y": resample_position_grid(inputs["x"], case["dst"])}

    return compute


# --- models ---


def build_tokenizer(settings: Settings, state: StateDict) -> Tokenizer:
    expect(settings, "encoder_act", "gelu")
    expect(settings, "mode", "soft")
    tokenizer = Tokenizer(
        in_chans=settings["in_channels"],
        widths=settings["downsample_layer_channels"],
        decoder_widths=settings["upsample_layer_channels"],
        stem_stride=settings["start_stride"],
        codebook_size=settings["num_embeddings"],
        code_dim=settings["embedding_dim"],
        reduction="sum",
    )
    tokenizer.load_state_dict(convert_released_tokenizer(state))
    return tokenizer.eval()


def tokenizer_group(settings: Settings, tensors: StateDict) -> Compute:
    tokenizer = build_tokenizer(settings, select(tensors, "state."))

    def compute(case: Settings, inputs: StateDict) -> StateDict:
        degree = case["degree_of_anisotropy"]
        z = tokenizer.encoder(inputs["x"], degree)  # x is in [-1, 1] already
        tokens = tokenizer.quantizer(z)
        return {
            "z": z,
            "logits": tokens.logits,
            "z_q": tokens.quantized,
            "rec": tokenizer.decoder(tokens.quantized, degree),
            "prior_loss": prior_loss(mean_probability(tokens.logits.softmax(-1))),
            "entropy": entropy_loss(tokens.logits),
        }

    return compute


def build_vit(settings: Settings, *, normalisation: str) -> SpadViT:
    """Build a ViT; ``normalisation`` is the text of the reference, empty for none."""
    size = settings["patch_size"]
    *_, patch_y, patch_x = [size] * 3 if isinstance(size, int) else size
    if patch_y != patch_x:
        raise ValueError(f"patch_size {size} differs between y and x")
    if "ImageNet" in normalisation:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    elif normalisation in ("", "x"):
        mean, std = (0.0,) * settings["in_channels"], (1.0,) * settings["in_channels"]
    else:
        raise ValueError(f"input_norm {normalisation!r} is unknown")
    rope = rope_arguments(settings, "rope_")
    return SpadViT(
        in_chans=settings["in_channels"],
        patch_size=patch_x,
        embed_dim=settings["embed_dim"],
        depth=settings["depth"],
        num_heads=settings["num_heads"],
        mlp_ratio=settings["mlp_ratio"],
        qkv_bias=settings["qkv_bias"],
        sub_ln=settings["sub_ln"],
        pos_grid=settings["pos_embed_shape"],
        rope_base=rope["base"],
        rope_depth_base=rope["depth_base"],
        rope_rescale=rope["rescale"],
        mean=mean,
        std=std,
    )


def vit_group(settings: Settings, tensors: StateDict) -> Compute:
    normalisation = settings.get("input_norm", {}).get("vit", "")
    vit = build_vit(settings, normalisation=normalisation).eval()
    vit.load_state_dict(convert_released_vit(select(tensors, "state.")))

    def compute(case: Settings, inputs: StateDict) -> StateDict:
        outputs: StateDict = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, output: outputs.update({name: output})

        hooks = [b.register_forward_hook(keep(f"block{i}")) for i, b in enumerate(vit.blocks)]
        out = vit.forward_features(inputs["x"], case["degree_of_anisotropy"])
        for hook in hooks:
            hook.remove()
        return outputs | {"out": out}

    return compute


def mim_group(settings: Settings, tensors: StateDict) -> Compute:
    norms = settings.get("input_norm", {})
    expect(norms, "tokenizer", "2 x - 1")
    layers, depth = sorted(settings["mask_layer_ids"]), settings["vit"]["depth"]
    if layers != list(range(depth - len(layers), depth)):
        raise ValueError(f"mask_layer_ids {layers} are not the last of {depth} layers")
    model = MaskedImageModel(
        build_vit(settings["vit"], normalisation=norms.get("vit", "ImageNet")),
        codebook_size=settings["tokenizer"]["num_embeddings"],
        num_mask_layers=len(layers),
    ).eval()
    model.load_state_dict(convert_released_mim(select(tensors, "state.")))
    tokenizer = build_tokenizer(settings["tokenizer"], select(tensors, "tokenizer."))

    def compute(case: Settings, inputs: StateDict) -> StateDict:
        x, visible_index = inputs["x"], inputs["visible_idx"]
        degree = case["degree_of_anisotropy"]
        target = tokenizer.token_logits(x, degree)
        output = model(x, visible_index, target, degree)
        return {
            "hidden": model.hidden(x, visible_index, degree),
            "target_logits": target,
            "masked_logits": output.logits.flatten(0, 1),
            "loss": soft_cross_entropy(output.logits, output.target, from_logits=True),
        }

    return compute


def adapter_group(settings: Settings, tensors: StateDict) -> Compute:
    expect(settings, "adaptive_patch_embed", False)
    patch_z, _, patch_x = settings["patch_size"]
    if patch_x % patch_z or not math.log2(patch_x // patch_z).is_integer():
        raise ValueError(f"patch_size {settings['patch_size']} stands for no degree")
    degree = (patch_x // patch_z).bit_length() - 1
    normalisation = settings.get("input_norm", {}).get("vit", "")
    vit = build_vit(settings, normalisation=normalisation)
    pyramid = Pyramid(vit, out_indices=settings["out_indexes"]).eval()
    state = convert_released_pyramid(select(tensors, "state."))
    pyramid.load_state_dict(state)

    def compute(_: Settings, inputs: StateDict) -> StateDict:
        return {f"feature{i}": f for i, f in enumerate(pyramid(inputs["x"], degree))}

    return compute


class Kind(NamedTuple):
    """What a group of this kind needs.

    Attributes:
        build: From the group's settings and tensors to the function that runs a case.
        tolerance: Largest absolute difference.
        inputs: Tensors of a case that are given.
        optional: Those of them that may be absent.
        weights: Prefixes of the group's weights; converting them fails on a key left over.
    """

    build: Callable[[Settings, StateDict], Compute]
    tolerance: float
    inputs: set[str]
    optional: set[str]
    weights: tuple[str, ...]


KINDS = {
    "spad_conv": Kind(conv_group, 1e-5, {"x", "weight", "bias"}, {"bias"}, ()),
    "rope": Kind(rope_group, 1e-5, {"q"}, set(), ()),
    "resample": Kind(resample_group, 1e-5, {"x"}, set(), ()),
    "tokenizer": Kind(tokenizer_group, 1e-4, {"x"}, set(), ("state.",)),
    "vit": Kind(vit_group, 1e-4, {"x"}, set(), ("state.",)),
    "mim": Kind(mim_group, 1e-4, {"x", "visible_idx"}, set(), ("state.", "tokenizer.")),
    "adapter": Kind(adapter_group, 1e-4, {"x"}, set(), ("state.",)),
}
