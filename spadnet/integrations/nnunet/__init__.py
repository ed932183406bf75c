"""SPAD-UNets in nnU-Net v2: plans that name them, a trainer that puts pretrained weights into them.

Planning, preprocessing, augmentation and evaluation remain nnU-Net's; ``pip install
spadnet[nnunet]`` brings it::

    nnUNetv2_plan_and_preprocess -d 4
    python -m spadnet.integrations.nnunet train 4 3d_fullres 0
    python -m spadnet.integrations.nnunet predict -i ... -o ... -d 4 -c 3d_fullres -f 0

Or with nnU-Net's own commands, which find the trainer by an environment variable::

    export nnUNet_extTrainer="$(python -m spadnet.integrations.nnunet trainers)"
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSpadnet

    python -m spadnet.integrations.nnunet save .../fold_0/checkpoint_final.pth my_unet

``SPADNET_ENCODER`` names the checkpoint folder or hub id of a SPAD-UNet to start from.
"""
