"""Convert weights of other programs into a checkpoint folder of spadnet.

    python tools/convert_weights.py KIND FILE OUT --licence SPDX [options]

KIND says what the file holds:

- ``released-tokenizer``, ``released-vit``, ``released-mim``: released PUMIT weights. For the last
  one, ``--num-mask-layers`` tells how many blocks see mask tokens (base 12, large 6).
- ``timm``: a ViT, DINOv2 or EVA-02 of timm; ``--model`` names its architecture, such as
  ``vit_base_patch14_dinov2``. ``--patch-size 16`` resamples the patches, which volumes need.
- ``vqgan``: a VQGAN of taming-transformers, as a tokenizer.

The file is a safetensors file or a pickle of plain types and tensors; no code in it is run. Nothing
is downloaded. Every key must find its place. ``spadnet doctor OUT`` checks the result.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import timm

import spadnet
from spadnet.weights.contract import Model
from spadnet.weights.convert import (
    StateDict,
    mim_from_released,
    read_foreign,
    spad_vit_from_timm,
    tokenizer_from_released,
    tokenizer_from_vqgan,
    vit_from_released,
)

KINDS = ("released-tokenizer", "released-vit", "released-mim", "timm", "vqgan")


def convert(kind: str, state: StateDict, arguments: argparse.Namespace) -> Model:
    """Build the model that the weights are for."""
    match kind:
        case "released-tokenizer":
            return tokenizer_from_released(state)
        case "released-vit":
            return vit_from_released(state)
        case "released-mim":
            if arguments.num_mask_layers is None:
                raise ValueError("released-mim needs --num-mask-layers: 12 for base, 6 for large")
            return mim_from_released(state, num_mask_layers=arguments.num_mask_layers)
        case "vqgan":
            return tokenizer_from_vqgan(state)
    if arguments.model is None:
        raise ValueError("timm needs --model: the name of its architecture")
    return from_timm(arguments.model, state, patch_size=arguments.patch_size)


def from_timm(name: str, state: StateDict, *, patch_size: int | None) -> Model:
    """Load weights into a timm model and convert it; the result takes intensities in [0, 1]."""
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}")
    classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    try:
        source = timm.create_model(name, num_classes=classes)
        source.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"not the weights of {name}: {' '.join(str(error).split())[:200]}"
        ) from error
    cfg = source.pretrained_cfg
    return spad_vit_from_timm(source, patch_size=patch_size, mean=cfg["mean"], std=cfg["std"])


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one file; the exit code is 1 where it cannot be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path, help="checkpoint folder")
    parser.add_argument("--licence", required=True, help="SPDX name of the weights' licence")
    parser.add_argument("--name", help="name of the model")
    parser.add_argument("--data", action="append", default=[], help="data set; repeatable")
    parser.add_argument("--model", help="timm: name of the architecture")
    parser.add_argument("--patch-size", type=int, help="timm: resample patches to this size")
    parser.add_argument("--num-mask-layers", type=int, help="released-mim: blocks with mask tokens")
    arguments = parser.parse_args(argv)
    try:
        model = convert(arguments.kind, read_foreign(arguments.file), arguments)
        folder = spadnet.save_pretrained(
            model,
            arguments.out,
            name=arguments.name or arguments.model,
            training={"data": arguments.data, "converted_from": arguments.kind},
            licence=arguments.licence,
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    print(f"{type(model).__name__} written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
