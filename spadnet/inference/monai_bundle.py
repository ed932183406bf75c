"""A trained model for one spacing as a MONAI bundle: a folder that MONAI's tools read.

The network of the bundle gives one tensor: a tokenizer its reconstruction, an encoder its tokens as
a feature map. Its configuration names the degree; its weights are the model's, whatever the degree.
"""

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spadnet.inference.specialise import specialise
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import required_multiple
from spadnet.weights.hub import Loaded

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_CLASSES: dict[str, type[SpadViT] | type[Tokenizer]] = {
    "SpadViT": SpadViT,
    "Tokenizer": Tokenizer,
}


class BundleNetwork(nn.Module):
    """A model for one degree that gives one tensor of features or intensities.

    The state is that of the model itself, so that a bundle's ``model.pt`` fits any degree.
    """

    def __init__(self, model: str, arguments: Mapping[str, Any], degree: int) -> None:
        """Build the network with random weights.

        Args:
            model: ``"SpadViT"`` or ``"Tokenizer"``.
            arguments: Of the model.
            degree: Degree of anisotropy of the images.
        """
        super().__init__()
        if model not in _CLASSES:
            raise ValueError(f"model must be one of {', '.join(_CLASSES)}, got {model!r}")
        self.model = _CLASSES[model](**dict(arguments))
        self.degree = degree

    def forward(self, image: Tensor) -> Tensor:
        """Map [B, C_in, D, H, W] to a reconstruction of that size, or to tokens [B, C, d, h, w]."""
        if isinstance(self.model, Tokenizer):
            reconstruction, _ = self.model(image, self.degree)
            assert isinstance(reconstruction, Tensor)
            return reconstruction
        maps = self.model.forward_intermediates(
            image, self.degree, indices=1, norm=not self.model.norm_after_pool,
            intermediates_only=True,
        )  # fmt: skip
        assert isinstance(maps[0], Tensor)
        return maps[0]


def export_bundle(loaded: Loaded, folder: Path, *, degree: int) -> None:
    """Write a checkpoint as a MONAI bundle.

    Args:
        loaded: Encoder or tokenizer with what is known of it.
        folder: Where to; must not exist.
        degree: Degree of anisotropy of the images.

    Raises:
        ValueError: If the folder is there already, the model is of another kind, or there is no
            such degree.
        OSError: If it cannot be written.
    """
    model, config = loaded.model, loaded.config
    if folder.exists():
        raise ValueError(f"{folder}: exists already; choose another name for the bundle")
    if not isinstance(model, SpadViT | Tokenizer):
        raise ValueError(
            f"{loaded.folder}: holds a {type(model).__name__}, no encoder or tokenizer"
        )
    specialise(model, degree)  # refuses what does not work
    name = type(model).__name__
    network = BundleNetwork(name, model.config(), degree)
    network.model.load_state_dict(model.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for inner in ("configs", "models", "docs"):
            (staging / inner).mkdir()
        metadata = _metadata(model, config, loaded.contract._asdict(), degree)
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
    model: SpadViT | Tokenizer, config: Mapping[str, Any], contract: dict[str, Any], degree: int
) -> dict[str, Any]:
    """What MONAI's specification wants to know, and the contract."""
    is_tokenizer = isinstance(model, Tokenizer)
    patch = required_multiple(degree, stride=contract["stride"])
    spatial = [f"{step}*n" if step > 1 else "n" for step in patch]
    channels = model.in_chans if isinstance(model, Tokenizer) else model.embed_dim
    data = config["training"].get("data", [])
    name = config["model"]["name"] or type(model).__name__
    colour = model.in_chans == 3
    common = {"dtype": "float32", "is_patch_data": False}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by spadnet"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {"spadnet": config["versions"]["spadnet"]},
        "name": name,
        "task": "Reconstruction of images through tokens" if is_tokenizer else "Image features",
        "description": f"spadnet {type(model).__name__} for degree of anisotropy {degree}",
        "authors": "the authors of the checkpoint",
        "copyright": f"licence {config['licence']}",
        "data_source": ", ".join(map(str, data)) or "not recorded",
        "intended_use": "Research. Not a medical device: not for diagnosis or treatment.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "rgb" if colour else "magnitude",
                    "num_channels": model.in_chans,
                    "spatial_shape": spatial,
                    "value_range": [0, 1],
                    "channel_def": {
                        str(i): c
                        for i, c in enumerate(
                            ("red", "green", "blue")
                            if colour
                            else [f"image {i}" for i in range(model.in_chans)]
                        )
                    },
                    **common,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image" if is_tokenizer else "feature",
                    "format": "magnitude" if is_tokenizer else "features",
                    "num_channels": channels,
                    "spatial_shape": spatial if is_tokenizer else ["n", "n", "n"],
                    "value_range": [0, 1] if is_tokenizer else [],
                    "channel_def": {"0": "image" if is_tokenizer else "feature"},
                    **common,
                }
            },
        },
        "spadnet": {"contract": contract, "degree": degree},
    }
