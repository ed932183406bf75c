"""What nnU-Net finds by the names of classes; they live elsewhere to stay importable."""

from spadnet.integrations.nnunet.trainer import nnUNetTrainerSpadnet, nnUNetTrainerSpadnetVit

__all__ = ["nnUNetTrainerSpadnet", "nnUNetTrainerSpadnetVit"]
