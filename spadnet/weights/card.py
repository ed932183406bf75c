"""The model card: what a person reads before using a checkpoint."""

from collections.abc import Mapping
from typing import Any

_SHOWN = ("channels", "axes", "stride", "max_degree", "degree_rule", "stride_rule")

_USE = {
    "Tokenizer": """\
tokenizer = spadnet.load_tokenizer("FOLDER")
reconstruction, codes = tokenizer(volume, degree=spadnet.Spacing(5.0, 0.8, 0.8).degree())""",
    "SpadViT": """\
encoder = spadnet.load_encoder("FOLDER")
embedding = encoder("image.nii.gz")  # .cls, .tokens [D, H, W, C], .grid, .spacing""",
}
_USE["SpadUNet"] = """\
from spadnet.weights.hub import load_pretrained

unet = load_pretrained("FOLDER")
logits = unet(volume, degree=spadnet.Spacing(5.0, 0.8, 0.8).degree())"""
_USE["SpadConvNet"] = _USE["AttentionClassifier"] = """\
from spadnet.weights.hub import load_pretrained

classifier = load_pretrained("FOLDER")
logits = classifier(volume, degree=spadnet.Spacing(5.0, 0.8, 0.8).degree())"""
_USE["VitSegmentor"] = _USE["TokenizerSegmentor"] = _USE["SpadUNet"].replace("unet", "segmentor")
_USE["MaskedImageModel"] = _USE["SpadViT"]

_WHAT = {
    "Tokenizer": "visual tokenizer: turns an image into a grid of codes and back",
    "SpadViT": "encoder: turns an image into a feature and a grid of tokens",
    "MaskedImageModel": "masked image model: an encoder with the head that predicts codes",
    "SpadUNet": "U-Net: turns an image into logits of its voxels",
    "SpadConvNet": "convolutional classifier: turns an image into logits",
    "AttentionClassifier": "classifier: an encoder with an attention pool and a linear head",
    "VitSegmentor": "segmentor: an encoder with a decoder that gives logits of voxels",
    "TokenizerSegmentor": "segmentor: a tokenizer's encoder with a decoder of voxels' logits",
}

_FEATURE = {
    "token": "the class token",
    "avg": "the mean of its tokens",
    "avgstd": "the mean and the standard deviation of its tokens, side by side",
}
"""What stands for a whole image, by an encoder's ``global_pool``."""

_SECTIONS = ("data", "figures", "limits")
"""Facts of a training that have a place of their own in the card."""


def model_card(config: Mapping[str, Any], *, num_parameters: int) -> str:
    """Write the card of a checkpoint as Markdown with the front matter that hubs read.

    Args:
        config: Contents of ``config.json``.
        num_parameters: Number of parameters.
    """
    kind = config["model"]["class"]
    name = config["model"]["name"] or kind
    contract, training = config["contract"], config["training"]
    data = [str(item) for item in training.get("data", [])]
    lines = [
        "---",
        f"license: {config['licence'].lower()}",
        "library_name: spadnet",
        "tags: [medical-imaging, spadnet]",
        "---",
        "",
        f"# {name}",
        "",
        f"A spadnet {_WHAT[kind]}, for 2D and 3D images of any spacing. "
        f"{num_parameters:,} parameters.{_feature(config['model'])}",
        "",
        "```python",
        "import spadnet",
        "",
        _USE[kind],
        "```",
        "",
        "## What it takes",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key.replace('_', ' ')} | {contract[key]} |" for key in _SHOWN),
        *(
            f"| intensity, {key.replace('_', ' ')} | {v} |"
            for key, v in contract["intensity"].items()
        ),
        f"| mean, std (applied inside) | {contract['mean']}, {contract['std']} |",
        "",
        "## Training",
        "",
        f"Data: {', '.join(data) if data else 'not recorded'}.",
        "",
        *(f"- {key}: {value}" for key, value in training.items() if key not in _SECTIONS),
        "",
        *_figures(training.get("figures", {})),
        f"Written by spadnet {config['versions']['spadnet']}, torch {config['versions']['torch']}.",
        "",
        "## Limits",
        "",
        "Not a medical device: do not use it to diagnose or treat anyone. It has seen the data "
        "named above and nothing else; check it on your own modality, body region and device.",
        *([str(training["limits"])] if "limits" in training else []),
        "",
        "## Licence",
        "",
        f"{config['licence']}.",
        "",
    ]
    return "\n".join(lines)


def _feature(model: Mapping[str, Any]) -> str:
    """A sentence on what stands for a whole image, of encoders without a classifier."""
    arguments = model["arguments"]
    feature = _FEATURE.get(arguments.get("global_pool", ""))
    if model["class"] != "SpadViT" or feature is None:
        return ""
    return f" The feature of an image (`.cls`) is {feature}."


def _figures(figures: Mapping[str, Any]) -> list[str]:
    """Section on what was measured, none where nothing was."""
    if not figures:
        return []
    rows = [f"| {what} | {value} |" for what, value in figures.items()]
    return ["## Figures", "", "| | |", "|---|---|", *rows, ""]
