"""The data of a training from a ``data`` section."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from spadnet.cli.usage import UsageError
from spadnet.data.augment import IntensityAugment
from spadnet.data.catalogue import load_store
from spadnet.data.crop_plan import NO_AUGMENT, CropAugment
from spadnet.data.datasets import StepDataset, SyntheticSource, Volume, to_volume
from spadnet.data.folder import load_folder
from spadnet.data.samples import list_samples, load_samples
from spadnet.inference.trained_range import TrainedRange
from spadnet.near_names import suggest
from spadnet.train.datamodule import StepDataModule
from spadnet.train.synthetic import ANATOMIES, synthetic_images

SOURCES = ("samples", "folder", "store", "synthesis")


class Data(NamedTuple):
    """Batches of a training.

    Attributes:
        module: The batches.
        names: What they are made from, for the model card.
        trained: Spacings that the model will see.
    """

    module: StepDataModule
    names: list[str]
    trained: TrainedRange


def build_data(settings: Mapping[str, Any], *, in_chans: int) -> Data:
    """Read the images and plan the batches.

    Args:
        settings: Composed configuration as plain types.
        in_chans: Channels of the batches.

    Raises:
        ValueError: If an image cannot be used; the message names the file and the reason.
    """
    section, max_steps = settings["data"], settings["trainer"]["max_steps"]
    volumes, names = load_volumes(section, in_chans=in_chans)
    share = section["synthetic_share"] if volumes else 1.0
    mix_up = section["mix_up"] if volumes else 0.0
    if share > 0 or mix_up > 0:
        names.append("spadnet synthesis")
    if not 0 <= section["thick_slices"] <= 1:
        raise UsageError(f"data.thick_slices must lie in [0, 1], got {section['thick_slices']}")
    augment = CropAugment(thick_prob=section["thick_slices"]) if section["augment"] else NO_AUGMENT
    dataset = StepDataset(
        volumes,
        max_steps=max_steps,
        seed=settings["seed"],
        degrees=section["degrees"],
        degrees_per_step=section["degrees_per_step"],
        flat_share=section["flat_share"],
        tokens=tuple(section["tokens"]),
        token_budget=section["token_budget"],
        in_chans=in_chans,
        synthetic=_synthesis(section) if share > 0 or mix_up > 0 else None,
        synthetic_share=share,
        mix_up=mix_up,
        crop_augment=augment._replace(fractional_degree=section["fractional_degree"]),
        intensity_augment=IntensityAugment() if section["augment"] else None,
    )
    module = StepDataModule(dataset, max_steps=max_steps, num_workers=section["num_workers"])
    trained = TrainedRange.over([volume.spacing for volume in volumes], dataset.degrees)
    return Data(module, names, trained)


def _synthesis(section: Mapping[str, Any]) -> SyntheticSource:
    """Synthesis with the anatomies that a ``data`` section asks for."""
    source = section["synthetic_anatomy"]
    if source not in ANATOMIES:
        raise UsageError(f"unknown data.synthetic_anatomy {source!r}{suggest(source, ANATOMIES)}")
    return partial(synthetic_images, source=source)


def load_volumes(section: Mapping[str, Any], *, in_chans: int) -> tuple[list[Volume], list[str]]:
    """Read the real images that a ``data`` section names.

    Args:
        section: Where they are.
        in_chans: Channels wanted.

    Returns:
        Images, and the names of the data sets.
    """
    source = section["source"]
    if source == "synthesis":
        return [], []
    if source == "samples":
        images = load_samples("train")
        names = [f"{sample.name} ({sample.source})" for sample in list_samples("train")]
        return [to_volume(image, in_chans=in_chans) for image in images], names
    if source == "folder":
        if section["path"] is None:
            raise UsageError("data.path=FOLDER is missing: the folder with the images")
        folder = Path(str(section["path"])).expanduser()
        volumes = load_folder(folder, in_chans=in_chans, on_error=section["on_error"])
        return volumes, [folder.name]
    if source == "store":
        if section["path"] is None:
            raise UsageError("data.path=FOLDER is missing: a store, see spadnet preprocess --help")
        store = Path(str(section["path"])).expanduser()
        volumes = load_store(
            store,
            in_chans=in_chans,
            set_weights=section["set_weights"],
            set_power=section["set_power"],
            published=section["published_weights"],
        )
        return volumes, [store.name]
    raise UsageError(f"unknown data.source {source!r}{suggest(str(source), SOURCES)}")
