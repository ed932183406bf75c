"""nnU-Net's trainers with spacing-aware networks; the only module here that imports nnU-Net."""

import os
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from spadnet.integrations.nnunet.network import PlannedUNet, PlannedVitSegmentor
from spadnet.integrations.nnunet.plans import ENCODER_ENTRY, spad_plans
from spadnet.weights.hub import load_vit
from spadnet.weights.transfer import put_unet, put_vit

ENCODER_VARIABLE = "SPADNET_ENCODER"
"""Environment variable that names pretrained weights; it goes before the plans' entry."""


def _named_encoder(plans: dict[str, Any]) -> str | None:
    return os.environ.get(ENCODER_VARIABLE) or plans.get(ENCODER_ENTRY)


def _unwrapped(network: nn.Module) -> nn.Module:
    network = getattr(network, "module", network)  # DDP wraps
    return getattr(network, "_orig_mod", network)  # torch.compile wraps


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
        self._encoder = _named_encoder(plans)
        super().__init__(spad_plans(plans), configuration, fold, dataset_json, device)

    def initialize(self) -> None:
        """Build the network and put pretrained weights into it, where some are named."""
        super().initialize()
        if self._encoder:
            network = _unwrapped(self.network)
            assert isinstance(network, PlannedUNet)
            self.print_to_log_file(f"pretrained: {put_unet(network.unet, self._encoder)}")

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load a checkpoint of this training, which makes pretrained weights needless."""
        self._encoder = None
        super().load_checkpoint(filename_or_checkpoint)


class nnUNetTrainerSpadnetVit(nnUNetTrainer):  # noqa: N801
    """Train a pretrained SPAD-ViT to segment, with all else as nnU-Net plans it.

    The encoder is the one that ``SPADNET_ENCODER`` or the plans name. Its decoder has six levels,
    so that patches become multiples of 32 in-plane. AdamW with the rate of the published runs.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        """Change the plans for the named encoder and go on as nnU-Net does."""
        encoder = _named_encoder(plans)
        if not encoder:
            raise ValueError(f"{ENCODER_VARIABLE} must name a checkpoint folder or a hub id")
        self._encoder = encoder
        vit = load_vit(encoder, num_classes=0).config()
        super().__init__(spad_plans(plans, vit=vit), configuration, fold, dataset_json, device)
        self.initial_lr, self.weight_decay = 1e-4, 0.05

    def initialize(self) -> None:
        """Build the network and put the pretrained weights into it."""
        super().initialize()
        network = _unwrapped(self.network)
        assert isinstance(network, PlannedVitSegmentor)
        transfer = put_vit(network.segmentor.vit, self._encoder)
        self.print_to_log_file(f"pretrained encoder: {transfer}")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW with nnU-Net's schedule."""
        learnt = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
