"""Writes a folder in the reference's form from spadnet's own models, all sizes unlike it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from released import released_mim, released_pyramid, released_tokenizer, released_vit
from safetensors.torch import save_file
from torch import Tensor, nn

from spadnet.layers.rope import rotary_angles, rotate
from spadnet.layers.spad_conv import spad_conv3d, spad_conv_transpose3d
from spadnet.losses.mim import soft_cross_entropy
from spadnet.models.mim import MaskedImageModel
from spadnet.models.pyramid import Pyramid
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT

ROPE = {
    "rope_base": [77.0, 500.0, 500.0],
    "rope_rescale_shape": [-1, 4, 4],
    "rope_merge_hw": True,
}


def randomise(model: nn.Module) -> Any:
    """Give every parameter a random value."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


class Folder:
    """Collects groups in the reference's form and writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups: dict[str, Any] = {}
        path.mkdir()

    def add(self, name: str, settings: Any, tensors: dict[str, Tensor]) -> None:
        """Add a group."""
        self.groups[name] = settings
        tensors = {key: value.clone().contiguous() for key, value in tensors.items()}
        save_file(tensors, self.path / f"{name}.safetensors")

    def write(self) -> None:
        """Write ``cases.json``."""
        (self.path / "cases.json").write_text(json.dumps(self.groups))


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix before each key."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def add_layers(folder: Folder) -> None:
    """Convolutions and rotations that the copied folder does not have."""
    cases, tensors = [], {}
    for kernel_size, stride, transposed in (
        (4, 2, False),
        (8, 8, False),
        (4, 2, True),
        (8, 8, True),
    ):
        name = f"{'t' if transposed else ''}conv.k{kernel_size}s{stride}.a3.n3"
        level = 3 if transposed else 1
        operation = spad_conv_transpose3d if transposed else spad_conv3d
        more = {"reduction": "sum"} if transposed else {}
        degree = 3 - level + (stride.bit_length() - 1 if transposed else 0)
        x, weight = torch.randn(2, 4, 8, 8, 16), torch.randn(4, 4, *[kernel_size] * 3) / 20
        y = operation(x, weight, None, stride=stride, degree=max(degree, 0), **more)
        cases.append(
            {
                "name": name,
                "transposed": transposed,
                "kernel_size": kernel_size,
                "stride": stride,
                "padding": int(kernel_size != stride),
                "degree_of_anisotropy": 3,
                "num_downsamples": level,
            }
        )
        tensors |= prefixed(name, {"x": x, "weight": weight, "y": y})
    folder.add("spad_conv", cases, tensors)

    angles = rotary_angles((2, 3, 2), 32, base=500.0, depth_base=77.0, rescale=(-1, 4, 4))
    q = torch.randn(2, 12, 3, 32)
    out = rotate(q, angles.cos()[:, None], angles.sin()[:, None])
    case = {"name": "r", "head_dim": 32, "grid": [2, 3, 2]}
    case |= {key.removeprefix("rope_"): value for key, value in ROPE.items()}
    values = {"q": q, "out": out, "cos": angles.cos(), "sin": angles.sin()}
    folder.add("rope", [case], prefixed("r", values))


def tokenizer_settings() -> dict[str, Any]:
    """Settings of :func:`tokenizer` in the reference's words."""
    return {
        "in_channels": 3,
        "start_stride": 2,
        "downsample_layer_channels": [8, 8, 16, 24],
        "upsample_layer_channels": [16, 8, 8, 32],
        "encoder_act": "gelu",
        "num_embeddings": 10,
        "embedding_dim": 12,
        "mode": "soft",
    }


def tokenizer() -> Tokenizer:
    """A tokenizer whose widths, strides and codes are not those of the copied folder."""
    return randomise(
        Tokenizer(
            widths=(8, 8, 16, 24),
            decoder_widths=(16, 8, 8, 32),
            stem_stride=2,
            codebook_size=10,
            code_dim=12,
            reduction="sum",
        )
    )


def vit_settings(*, depth: int, **more: Any) -> dict[str, Any]:
    """Settings of a ViT of width 32 in the reference's words."""
    settings = {
        "in_channels": 3,
        "patch_size": 16,
        "embed_dim": 32,
        "pos_embed_shape": [2, 3, 2],
        "depth": depth,
        "num_heads": 4,
        "sub_ln": True,
        "mlp_ratio": 1.5,
        "qkv_bias": True,
    }
    return settings | ROPE | more


def vit(*, depth: int, **more: Any) -> SpadViT:
    """The ViT of the same settings."""
    arguments = {
        "embed_dim": 32,
        "depth": depth,
        "num_heads": 4,
        "mlp_ratio": 1.5,
        "pos_grid": (2, 3, 2),
        "rope_base": 500.0,
        "rope_depth_base": 77.0,
        "rope_rescale": (-1, 4, 4),
    }
    return randomise(SpadViT(**arguments | more))


def add_models(folder: Folder) -> None:
    """Models of other widths, depths, channels, strides, heads and mask layers."""
    model, x = tokenizer(), 2 * torch.rand(2, 3, 16, 32, 16) - 1
    z = model.encoder(x, 1)
    tokens = model.quantizer(z)
    p = tokens.logits.softmax(-1)
    mean = p.flatten(0, -2).mean(0)
    values = {
        "x": x,
        "z": z,
        "logits": tokens.logits,
        "z_q": tokens.quantized,
        "rec": model.decoder(tokens.quantized, 1),
        "prior_loss": (mean * mean.log()).sum().view(1),
        "entropy": -(p * p.log()).sum(-1).mean().view(1),
    }
    case = {"name": "b", "degree_of_anisotropy": 1, "input_shape": list(x.shape)}
    tensors = prefixed("b", values) | prefixed("state", released_tokenizer(model.state_dict()))
    folder.add("tokenizer_wide", tokenizer_settings() | {"cases": [case]}, tensors)

    model = vit(depth=2, sub_ln=False, qkv_bias=False, patch_size=8)
    x = torch.rand(1, 3, 4, 24, 16)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    values = {"x": x, "out": model.forward_features(x, 2)}
    values |= {f"block{i}": output for i, output in enumerate(outputs)}
    case = {"name": "v", "degree_of_anisotropy": 2, "input_shape": list(x.shape)}
    settings = vit_settings(depth=2, sub_ln=False, qkv_bias=False, patch_size=[8, 8, 8])
    settings |= {"cases": [case], "input_norm": {"vit": "(x - mean) / std with ImageNet"}}
    state = released_vit(model.state_dict(), fused_qkv=True)
    folder.add("vit_plain", settings, prefixed("v", values) | prefixed("state", state))

    model, coder = MaskedImageModel(vit(depth=4), codebook_size=10, num_mask_layers=2), tokenizer()
    randomise(model)
    x, index = torch.rand(2, 3, 2, 32, 48), torch.tensor([[0, 3, 5], [1, 2, 4]])
    target = coder.token_logits(x, 4)
    output = model(x, index, target, 4)
    values = {
        "x": x,
        "visible_idx": index,
        "hidden": model.hidden(x, index, 4),
        "target_logits": target,
        "masked_logits": output.logits.flatten(0, 1),
        "loss": soft_cross_entropy(output.logits, output.target, from_logits=True).view(1),
    }
    case = {"name": "m", "degree_of_anisotropy": 4, "input_shape": list(x.shape)}
    settings = {"mask_ratio": 0.75, "mask_layer_ids": [2, 3], "cases": [case]}
    settings |= {"vit": vit_settings(depth=4), "tokenizer": tokenizer_settings()}
    tensors = prefixed("m", values) | prefixed("state", released_mim(model.state_dict()))
    tensors |= prefixed("tokenizer", released_tokenizer(coder.state_dict()))
    folder.add("mim_middle", settings, tensors)

    for patch_depth in (2, 8):
        degree = int(math.log2(16 // patch_depth))
        raw = {"in_chans": 2, "mean": (0.0, 0.0), "std": (1.0, 1.0)}
        model = randomise(Pyramid(vit(depth=2, **raw), out_indices=(0, 1, 1, 0)))
        x = torch.rand(1, 2, 2 * patch_depth, 32, 64)
        values = {"x": x} | {f"feature{i}": f for i, f in enumerate(model(x, degree))}
        settings = vit_settings(depth=2, in_channels=2, patch_size=[patch_depth, 16, 16])
        settings |= {"out_indexes": [0, 1, 1, 0], "adaptive_patch_embed": False}
        state = released_pyramid(model.state_dict(), degree=degree)
        folder.add(f"adapter_pd{patch_depth}", settings, values | prefixed("state", state))


@torch.no_grad()
def write_other_sizes(path: Path) -> Path:
    """Write the folder, which must not exist, and return its path."""
    folder = Folder(path)
    add_layers(folder)
    add_models(folder)
    folder.write()
    return path
