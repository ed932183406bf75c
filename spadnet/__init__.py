"""Spacing-aware foundation models for medical images of any dimension and spacing.

>>> import spadnet
>>> vit = spadnet.create_model("spad_vit_tiny", in_chans=1, num_classes=3)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spadnet.inference.encoder import load_encoder
    from spadnet.inference.specialise import specialise
    from spadnet.spacing import Spacing
    from spadnet.weights.available import list_models
    from spadnet.weights.hub import create_model, load_tokenizer, save_pretrained
    from spadnet.weights.publish import push_to_hub

    __version__: str

__all__ = [
    "Spacing",
    "__version__",
    "create_model",
    "list_models",
    "load_encoder",
    "load_tokenizer",
    "push_to_hub",
    "save_pretrained",
    "specialise",
]

# Where each name lives; it is imported on first use, so that `import spadnet` costs nothing.
_HOME = {
    "Spacing": "spadnet.spacing",
    "create_model": "spadnet.weights.hub",
    "list_models": "spadnet.weights.available",
    "load_encoder": "spadnet.inference.encoder",
    "load_tokenizer": "spadnet.weights.hub",
    "push_to_hub": "spadnet.weights.publish",
    "save_pretrained": "spadnet.weights.hub",
    "specialise": "spadnet.inference.specialise",
}


# timm.create_model("spad_vit_tiny") works as well; until timm is imported, it costs nothing.
importlib.import_module("spadnet.weights.timm_names").register_when_imported()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("spadnet")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
