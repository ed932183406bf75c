"""Networks of spadnet in nnU-Net v2: plans that name them, trainers that start from their weights.

Planning, preprocessing, augmentation and evaluation remain nnU-Net's; ``pip install
spadnet[nnunet]`` brings it::

    nnUNetv2_plan_and_preprocess -d 4
    python -m spadnet.integrations.nnunet train 4 3d_fullres 0
    python -m spadnet.integrations.nnunet predict -i ... -o ... -d 4 -c 3d_fullres -f 0

Or with nnU-Net's own commands, which find the trainer by an environment variable::

    export nnUNet_extTrainer="$(python -m spadnet.integrations.nnunet trainers)"
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSpadnet

    python -m spadnet.integrations.nnunet save .../fold_0/checkpoint_final.pth my_unet

``SPADNET_ENCODER`` names the checkpoint folder or hub id of a SPAD-UNet to start from; with ``-tr
nnUNetTrainerSpadnetVit`` that of a SPAD-ViT, which a decoder turns into a segmenting network.
"""
