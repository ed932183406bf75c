"""What nnU-Net finds by the name of the class; it lives elsewhere to stay importable."""

from spadnet.integrations.nnunet.trainer import nnUNetTrainerSpadnet

__all__ = ["nnUNetTrainerSpadnet"]
