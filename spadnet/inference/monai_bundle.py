"""A trained model for one spacing as a MONAI bundle: a folder that MONAI's tools read.

The network of the bundle gives one tensor: a tokenizer its reconstruction, an encoder its tokens as
a feature map, a model with a classifier or a segmentor its logits. Its configuration names the
degree; its weights are the model's, whatever the degree.
"""

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spadnet.inference.specialise import specialise
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import required_multiple
from spadnet.weights.contract import InputContract, Model
from spadnet.weights.from_arguments import build_from_arguments
from spadnet.weights.hub import Loaded

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)


class BundleNetwork(nn.Module):
    """A model for one degree that gives one tensor of features, intensities or logits.

    The state is that of the model itself, so that a bundle's ``model.pt`` fits any degree.
    """

    def __init__(self, model: str, arguments: Mapping[str, Any], degree: int) -> None:
        """Build the network with random weights.

        Args:
            model: Name of its class, such as ``"SpadViT"`` or ``"Tokenizer"``.
            arguments: Of the model.
            degree: Degree of anisotropy of the images.
        """
        super().__init__()
        self.model = build_from_arguments(model, arguments, where="MONAI bundle", device="cpu")
        self.degree = degree

    def forward(self, image: Tensor) -> Tensor:
        """Map [B, C_in, D, H, W] to a reconstruction or logits of that size, tokens or logits.

        Tokens are [B, C, d, h, w], logits of a classifier [B, K].
        """
        model = self.model
        output: object
        if isinstance(model, SpadViT) and not model.num_classes:
            output = model.forward_intermediates(
                image, self.degree, indices=1, norm=not model.norm_after_pool,
                intermediates_only=True,
            )  # fmt: skip
        else:
            output = model(image, self.degree)
        first = output[0] if isinstance(output, list | tuple) else output
        assert isinstance(first, Tensor)
        return first


def export_bundle(loaded: Loaded, folder: Path, *, degree: int) -> None:
    """Write a checkpoint as a MONAI bundle.

    Args:
        loaded: Encoder, tokenizer or fine-tuned model with what is known of it.
        folder: Where to; must not exist.
        degree: Degree of anisotropy of the images.

    Raises:
        ValueError: If the folder is there already, the model is a masked image model, or there is
            no such degree.
        OSError: If it cannot be written.
    """
    model, config = loaded.model, loaded.config
    if folder.exists():
        raise ValueError(f"{folder}: exists already; choose another name for the bundle")
    if isinstance(model, MaskedImageModel):
        raise ValueError(f"{loaded.folder}: holds a MaskedImageModel; export its encoder")
    specialise(model, degree)  # refuses what does not work
    name = type(model).__name__
    network = BundleNetwork(name, model.config(), degree)
    network.model.load_state_dict(model.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for inner in ("configs", "models", "docs"):
            (staging / inner).mkdir()
        metadata = _metadata(model, config, loaded.contract, degree)
        definition = {
            "_target_": "spadnet.inference.monai_bundle.BundleNetwork",
            "model": name,
            "arguments": model.config(),
            "degree": degree,
        }
        inference = {
            "imports": ["$import torch"],
            "bundle_root": ".",
            "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
            "ckpt_path": "$@bundle_root + '/models/model.pt'",
            "network_def": definition,
            "network": "$@network_def.to(@device)",
            "weights": "$torch.load(@ckpt_path, map_location=@device, weights_only=True)",
            "load": "$@network.load_state_dict(@weights)",
        }
        for file, content in (("metadata", metadata), ("inference", inference)):
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            (staging / "configs" / f"{file}.json").write_text(text, encoding="utf-8")
        torch.save(network.state_dict(), staging / "models" / "model.pt")
        card = loaded.folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {name}\n"
        (staging / "docs" / "README.md").write_text(text, encoding="utf-8")
        (staging / "LICENSE").write_text(f"{config['licence']}\n", encoding="utf-8")
        staging.chmod(0o755)
        os.replace(staging, folder)
    except RuntimeError as error:  # torch's writer does not raise OSError
        raise OSError(f"{folder}: cannot be written: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _metadata(
    model: Model, config: Mapping[str, Any], contract: InputContract, degree: int
) -> dict[str, Any]:
    """What MONAI's specification wants to know, and the contract."""
    patch = required_multiple(degree, stride=contract.stride)
    spatial = [f"{step}*n" if step > 1 else "n" for step in patch]
    data = config["training"].get("data", [])
    colour = contract.channels == 3
    names = [f"image {i}" for i in range(contract.channels)]
    image = {
        "type": "image",
        "format": "rgb" if colour else "magnitude",
        "num_channels": contract.channels,
        "spatial_shape": spatial,
        "value_range": [0, 1],
        "channel_def": _by_number(["red", "green", "blue"] if colour else names),
        "dtype": "float32",
        "is_patch_data": False,
    }
    task, output = _output(model, image, _classes(model, config))
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by spadnet"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {"spadnet": config["versions"]["spadnet"]},
        "name": config["model"]["name"] or type(model).__name__,
        "task": task,
        "description": f"spadnet {type(model).__name__} for degree of anisotropy {degree}",
        "authors": "the authors of the checkpoint",
        "copyright": f"licence {config['licence']}",
        "data_source": ", ".join(map(str, data)) or "not recorded",
        "intended_use": "Research. Not a medical device: not for diagnosis or treatment.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": output}},
        "spadnet": {"contract": contract._asdict(), "degree": degree},
    }


def _output(
    model: Model, image: Mapping[str, Any], classes: list[str]
) -> tuple[str, dict[str, Any]]:
    """What the network does, and what it gives for an image as described."""
    if isinstance(model, Tokenizer):
        return "Reconstruction of images through tokens", dict(image)
    logits = {**image, "value_range": [], "num_channels": len(classes)}
    logits["channel_def"] = _by_number(classes)
    if isinstance(model, SpadViT) and not classes:
        return "Image features", {
            **logits,
            "type": "feature",
            "format": "features",
            "num_channels": model.embed_dim,
            "spatial_shape": ["n", "n", "n"],
            "channel_def": {"0": "feature"},
        }
    if isinstance(model, SpadViT | SpadConvNet | AttentionClassifier):
        return "Classification", {
            **logits,
            "type": "logits",
            "format": "classes",
            "spatial_shape": [],
        }
    return "Segmentation", {**logits, "format": "segmentation"}


def _classes(model: Model, config: Mapping[str, Any]) -> list[str]:
    """Names of the classes, labels or values that a model gives."""
    count = int(model.config().get("num_classes", 0))
    task = config["training"].get("task")
    names = list(map(str, task.get("classes", []))) if isinstance(task, dict) else []
    return names if len(names) == count else [f"class {i}" for i in range(count)]


def _by_number(names: Sequence[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}
