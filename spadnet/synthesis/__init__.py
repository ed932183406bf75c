"""Random images with known anatomy: torch only, on CPU or GPU, each sample from its own seed."""

from spadnet.synthesis.appearance import PUBLISHED, Appearance
from spadnet.synthesis.degradation import corrupted_views, mix_up, thick_labels, thick_slices
from spadnet.synthesis.generate import SyntheticSample, random_spacing, synthesize

__all__ = [
    "PUBLISHED",
    "Appearance",
    "SyntheticSample",
    "corrupted_views",
    "mix_up",
    "random_spacing",
    "synthesize",
    "thick_labels",
    "thick_slices",
]
