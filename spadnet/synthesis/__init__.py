"""Random images with known anatomy: torch only, on CPU or GPU, each sample from its own seed."""

from spadnet.synthesis.appearance import PUBLISHED, Appearance
from spadnet.synthesis.dataset import SyntheticDataset, SyntheticItem
from spadnet.synthesis.degradation import corrupted_views, mix_up, thick_labels, thick_slices
from spadnet.synthesis.generate import (
    SyntheticSample,
    random_spacing,
    synthesize,
    synthesize_views,
)
from spadnet.synthesis.label_maps import LabelMap, label_maps

__all__ = [
    "PUBLISHED",
    "Appearance",
    "LabelMap",
    "SyntheticDataset",
    "SyntheticItem",
    "SyntheticSample",
    "corrupted_views",
    "label_maps",
    "mix_up",
    "random_spacing",
    "synthesize",
    "synthesize_views",
    "thick_labels",
    "thick_slices",
]
