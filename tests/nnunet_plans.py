"""Plans as nnU-Net's default planner writes them, and the network that they become."""

from typing import Any

from spadnet.integrations.nnunet.network import PlannedUNet


def plain(strides: list[list[int]], kernels: list[list[int]] | None = None) -> dict[str, Any]:
    """An entry ``architecture`` as nnU-Net's default planner writes it."""
    dims, count = len(strides[0]), len(strides)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": count,
            "features_per_stage": [4, 6, 8, 10, 12, 12, 12][:count],
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": kernels or [[3] * dims] * count,
            "strides": strides,
            "n_conv_per_stage": [2] * count,
            "n_conv_per_stage_decoder": [2] * (count - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


THICK = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]


def plans() -> dict[str, Any]:
    return {
        "dataset_name": "Dataset001_Thick",
        "plans_name": "nnUNetPlans",
        "configurations": {
            "2d": {
                "spacing": [1.0, 1.0],
                "patch_size": [32, 24],
                "architecture": plain([[1, 1], [2, 2], [2, 2], [2, 2]]),
            },
            "3d_fullres": {
                "spacing": [4.0, 1.0, 1.0],
                "patch_size": [4, 32, 24],
                "architecture": plain(THICK),
            },
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def build(configuration: dict[str, Any], **arguments: Any) -> PlannedUNet:
    return PlannedUNet(1, 3, **configuration["architecture"]["arch_kwargs"], **arguments).eval()
