"""Names of model sizes and how to build them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from spadnet.models.conv_net import spad_conv_tiny
from spadnet.models.spad_unet import spad_unet_base, spad_unet_small, spad_unet_tiny
from spadnet.models.tokenizer import spad_vt_base, spad_vt_small, spad_vt_tiny
from spadnet.models.vit_sizes import spad_vit_base, spad_vit_large, spad_vit_small, spad_vit_tiny
from spadnet.near_names import suggest

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    build.__name__: build
    for build in (
        spad_vt_tiny,
        spad_vt_small,
        spad_vt_base,
        spad_vit_tiny,
        spad_vit_small,
        spad_vit_base,
        spad_vit_large,
        spad_unet_tiny,
        spad_unet_small,
        spad_unet_base,
        spad_conv_tiny,
    )
}


def model_names() -> list[str]:
    """Names of all model sizes."""
    return list(_BUILDERS)


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a model with random weights.

    >>> vit = create_model("spad_vit_tiny", in_chans=1, num_classes=3)

    Args:
        name: One of :func:`model_names`.
        **arguments: Arguments of the size's function, such as ``in_chans`` and ``num_classes``.

    Raises:
        ValueError: If there is no such model; a near name is suggested.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}{suggest(name, _BUILDERS)}")
    return _BUILDERS[name](**arguments)
