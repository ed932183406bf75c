"""The names of spadnet's encoders in timm's registry, for 2D images.

>>> import spadnet, timm
>>> vit = timm.create_model("spad_vit_tiny", in_chans=1, num_classes=3)

Nothing heavy is imported here: names are entered when timm is imported, before or after spadnet,
and models are built when they are asked for.
"""

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

_REGISTRY = "timm.models"
_CHANNELS = {"spad_vit_tiny": 1, "spad_vit_small": 1, "spad_vit_base": 3, "spad_vit_large": 3}
_PATCH = 16


def _default_cfg(channels: int) -> dict[str, Any]:
    """What timm wants to know; intensities in [0, 1] are normalised inside the model."""
    return {
        "url": "",
        "input_size": (channels, 160, 160),
        "num_classes": 0,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://arxiv.org/abs/2312.07630",
    }


# timm's registry looks here for what belongs to an entry.
default_cfgs = {name: _default_cfg(channels) for name, channels in _CHANNELS.items()}
__all__ = [*_CHANNELS, "register_when_imported"]


def spad_vit_tiny(pretrained: bool = False, **arguments: Any) -> Any:
    """SPAD-ViT for small machines."""
    return _create("spad_vit_tiny", pretrained, arguments)


def spad_vit_small(pretrained: bool = False, **arguments: Any) -> Any:
    """SPAD-ViT for one GPU."""
    return _create("spad_vit_small", pretrained, arguments)


def spad_vit_base(pretrained: bool = False, **arguments: Any) -> Any:
    """SPAD-ViT as published, 768 wide."""
    return _create("spad_vit_base", pretrained, arguments)


def spad_vit_large(pretrained: bool = False, **arguments: Any) -> Any:
    """SPAD-ViT as published, 1024 wide."""
    return _create("spad_vit_large", pretrained, arguments)


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """Build a model as timm's factory wants it, with its extraction of features around it."""
    builder = importlib.import_module("timm.models._builder")
    cfg = builder.resolve_pretrained_cfg(
        name, arguments.get("pretrained_cfg"), arguments.get("pretrained_cfg_overlay")
    )
    cache_dir = arguments.pop("cache_dir", None)

    def build(
        *,
        img_size: int | Sequence[int] | None = None,
        dynamic_img_size: bool = True,
        **rest: Any,
    ) -> Any:
        if not dynamic_img_size:
            raise ValueError(f"{name} always takes images of any size, got dynamic_img_size=False")
        if img_size is not None:
            rest["pos_grid"] = _position_grid(img_size)
        hub = importlib.import_module("spadnet.weights.hub")
        source = _source(cfg) if pretrained else False
        return hub.create_model(name, pretrained=source, cache_dir=cache_dir, **rest)

    return builder.build_model_with_cfg(
        build,
        name,
        pretrained=False,  # the weights are loaded strictly by spadnet
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **arguments,
    )


def _position_grid(img_size: int | Sequence[int]) -> tuple[int, int, int]:
    """A learned position for each patch of an image of this size, five deep as by default."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height < _PATCH or width < _PATCH or height % _PATCH or width % _PATCH:
        raise ValueError(f"img_size must be a multiple of {_PATCH}, got {img_size}")
    return 5, height // _PATCH, width // _PATCH


def _source(cfg: Any) -> str | bool:
    """Where weights come from: what the configuration says, or what spadnet knows of the name."""
    if cfg.file:
        return f"local-dir:{cfg.file}"
    return f"hf-hub:{cfg.hf_hub_id}" if cfg.hf_hub_id else True


# --- registration ---


def register_when_imported() -> None:
    """Enter the names into timm's registry: now if timm is imported, else when it will be."""
    if _REGISTRY in sys.modules:
        _register(sys.modules[_REGISTRY])
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _register(registry: types.ModuleType) -> None:
    for entry in (spad_vit_tiny, spad_vit_small, spad_vit_base, spad_vit_large):
        if not registry.is_model(entry.__name__):
            registry.register_model(entry)


class _AfterTimm:
    """Import hook that waits for timm's models, once, and leaves how they are found alone."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find timm's models as Python would; once they have run, enter the names."""
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: types.ModuleType) -> None:
            run(module)
            _register(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
