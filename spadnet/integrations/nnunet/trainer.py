"""nnU-Net's trainer with SPAD-UNets; the only module here that imports nnU-Net."""

import os
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from spadnet.integrations.nnunet.network import PlannedUNet
from spadnet.integrations.nnunet.plans import ENCODER_ENTRY, spad_plans
from spadnet.integrations.nnunet.pretrained import put_pretrained

ENCODER_VARIABLE = "SPADNET_ENCODER"
"""Environment variable that names a pretrained SPAD-UNet; it goes before the plans' entry."""


class nnUNetTrainerSpadnet(nnUNetTrainer):  # noqa: N801
    """Train what nnU-Net plans, with a SPAD-UNet in the place of the plain U-Net.

    Plans of nnU-Net's default planner are changed when they are read, and saved so beside the
    checkpoints: predicting needs no more than the trainer's name, as ever.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        """Change the plans and go on as nnU-Net does."""
        changed = spad_plans(plans)
        super().__init__(changed, configuration, fold, dataset_json, device)
        self._encoder = os.environ.get(ENCODER_VARIABLE) or changed.get(ENCODER_ENTRY)

    def initialize(self) -> None:
        """Build the network and put pretrained weights into it, where some are named."""
        super().initialize()
        if self._encoder:
            network = getattr(self.network, "module", self.network)  # DDP wraps
            network = getattr(network, "_orig_mod", network)  # torch.compile wraps
            assert isinstance(network, PlannedUNet)
            self.print_to_log_file(f"pretrained: {put_pretrained(network.unet, self._encoder)}")

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load a checkpoint of this training, which makes pretrained weights needless."""
        self._encoder = None
        super().load_checkpoint(filename_or_checkpoint)
