"""The folder that nnU-Net searches for trainers: ``nnUNet_extTrainer``."""
