"""What nnU-Net trained, as a checkpoint folder: from there it serves every other spacing."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from spadnet.integrations.nnunet.network import PlannedUNet
from spadnet.integrations.nnunet.plans import NETWORK
from spadnet.weights.hub import save_pretrained

# Of the figures that nnU-Net logs; everything else in its checkpoints is plain.
_SAFE: list[Any] = [
    np.dtype,
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in "?bhilfd"),
]


def save_trained(checkpoint: Path, folder: Path) -> Path:
    """Save the SPAD-UNet in a checkpoint of nnU-Net as a checkpoint folder.

    nnU-Net's own normalisation is noted beside the training; the first norm of the network makes
    the scale of intensities all but immaterial.

    Args:
        checkpoint: ``checkpoint_final.pth`` or its like, of a training with spadnet's trainer.
        folder: Where to.

    Returns:
        The folder.

    Raises:
        ValueError: If the file is no such checkpoint.
        OSError: If a file cannot be read or written.
    """
    stored = _read(checkpoint)
    try:
        weights, started = stored["network_weights"], stored["init_args"]
        plans, name = started["plans"], started["configuration"]
        configuration = _resolved(plans["configurations"], name)
        architecture = configuration["architecture"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint}: not a checkpoint of nnU-Net v2: {error!r}") from error
    if architecture["network_class_name"] != NETWORK:
        raise ValueError(f"{checkpoint}: holds a {architecture['network_class_name']}")
    first = weights["unet.encoder.stages.0.blocks.0.conv.weight"]
    network = PlannedUNet(
        first.shape[1],
        weights["unet.decoder.heads.0.weight"].shape[0],
        **architecture["arch_kwargs"],
    )
    network.load_state_dict(weights)
    facts = {
        "data": [plans["dataset_name"]],
        "trained_by": f"nnU-Net, {plans['plans_name']}, {name}, fold {started['fold']}",
        "spacing": [float(value) for value in configuration["spacing"]],
        "normalisation": ", ".join(configuration["normalization_schemes"]),
        "epochs": int(stored["current_epoch"]),
    }
    return save_pretrained(network.unet, folder, training=facts)


def _read(checkpoint: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever the reader meets in a file that is no checkpoint
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{checkpoint}: not a checkpoint of nnU-Net v2: {reason}") from error


def _resolved(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with the entries that it inherits."""
    own = configurations[name]
    parent = own.get("inherits_from")
    return own if parent is None else {**_resolved(configurations, parent), **own}
