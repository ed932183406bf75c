"""The data of a training from a ``data`` section."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from spadnet.cli.label_maps import map_checksums, maps_to_train_on
from spadnet.cli.usage import UsageError
from spadnet.data.augment import IntensityAugment
from spadnet.data.catalogue import FILE as CATALOGUE
from spadnet.data.catalogue import find_stores, load_store
from spadnet.data.crop_plan import NO_AUGMENT, CropAugment
from spadnet.data.datasets import StepDataset, SyntheticSource
from spadnet.data.folder import load_folder
from spadnet.data.hold_out import keep_out
from spadnet.data.identity import identity_of_volumes
from spadnet.data.image import file_name
from spadnet.data.labelled_steps import JoinedSteps, LabelledSource, LabelledSteps
from spadnet.data.samples import list_samples, load_samples
from spadnet.data.volume import Volume, to_volume
from spadnet.inference.trained_range import TrainedRange
from spadnet.near_names import suggest
from spadnet.spacing import MAX_DEGREE
from spadnet.synthesis import LabelMap
from spadnet.train.datamodule import StepDataModule
from spadnet.train.meters import Source
from spadnet.train.synthetic import ANATOMIES, labelled_images, synthetic_images

logger = logging.getLogger(__name__)

SOURCES = ("samples", "folder", "store", "synthesis")


class Data(NamedTuple):
    """Batches of a training.

    Attributes:
        module: The batches.
        names: What they are made from, for the model card.
        trained: Spacings that the model will see.
        degrees: Degrees that steps draw.
        held_out: Images that no step sees; None where those of the package are meant.
        sources: Where each image comes from, by key.
        identity: What is trained on, for the run folder.
    """

    module: StepDataModule
    names: list[str]
    trained: TrainedRange
    degrees: list[int]
    held_out: list[Volume] | None
    sources: dict[str, Source]
    identity: dict[str, Any]


def build_data(
    settings: Mapping[str, Any], *, in_chans: int, images: bool = True, labelled: bool = False
) -> Data:
    """Read the images and plan the batches.

    Args:
        settings: Composed configuration as plain types.
        in_chans: Channels of the batches.
        images: Whether steps hold crops of images, synthetic ones among them.
        labelled: Whether steps hold synthetic images of known anatomy, as ``disentangle`` says.

    Raises:
        ValueError: If an image cannot be used; the message names the file and the reason.
    """
    if settings["data"]["label_maps"] is not None and not labelled:
        raise UsageError("data.label_maps needs objective=disentangle of spadnet pretrain-mim")
    max_steps = settings["trainer"]["max_steps"]
    steps: list[StepDataset | LabelledSteps] = []
    maps: list[LabelMap] = []
    volumes: list[Volume] = []
    names: list[str] = []
    held_out: list[Volume] = []
    if images:
        volumes, names = load_volumes(settings["data"], in_chans=in_chans)
        volumes, held_out = _keep_out(volumes, settings)
        steps.append(_image_steps(settings, volumes, in_chans=in_chans))
    if labelled:
        part, maps = _labelled_steps(settings)
        steps.append(part)
    if labelled or any(isinstance(part, StepDataset) and part.synthetic for part in steps):
        names.append("spadnet synthesis")
    if maps:
        names.append(f"label maps {file_name(Path(str(settings['data']['label_maps'])).name)}")
    dataset = steps[0] if len(steps) == 1 else JoinedSteps(*steps)
    module = StepDataModule(
        dataset, max_steps=max_steps, num_workers=settings["data"]["num_workers"]
    )
    degrees = sorted({degree for part in steps for degree in part.degrees})
    trained = TrainedRange.over([volume.spacing for volume in volumes], degrees)
    sources = {volume.key: Source(volume.dataset, volume.modality) for volume in volumes}
    identity = _identity(settings["data"], volumes, num_held_out=len(held_out), names=names)
    if maps:
        identity["label_maps"] = map_checksums(maps)
    return Data(module, names, trained, degrees, held_out or None, sources, identity)


def _keep_out(
    volumes: list[Volume], settings: Mapping[str, Any]
) -> tuple[list[Volume], list[Volume]]:
    """Split images into those to train on and those to validate on."""
    rule, source = settings["validate"], settings["data"]["source"]
    wanted = rule["every_steps"] is not None and rule["path"] is None
    if not wanted or source not in ("folder", "store"):
        return volumes, []
    train, kept = keep_out(volumes, per_degree=rule["per_degree"])
    if kept:
        logger.info("%d of %d images are kept out of the training", len(kept), len(volumes))
    return train, kept


def _identity(
    section: Mapping[str, Any], volumes: Sequence[Volume], *, num_held_out: int, names: list[str]
) -> dict[str, Any]:
    catalogues = []
    if section["source"] == "store" and volumes:
        stores = find_stores(Path(str(section["path"])).expanduser())
        catalogues = [store / CATALOGUE for store in stores]
    told = identity_of_volumes(volumes, num_held_out=num_held_out, catalogues=catalogues)
    return {**told, "names": names}


def load_held_out(rule: Mapping[str, Any], data: Data, *, in_chans: int) -> list[Volume]:
    """Images to validate on.

    Args:
        rule: The ``validate`` section.
        data: Of the training.
        in_chans: Channels wanted.
    """
    if rule["path"] is not None:
        path = Path(str(rule["path"])).expanduser()
        is_store = any((store / CATALOGUE).is_file() for store in find_stores(path))
        return (load_store if is_store else load_folder)(path, in_chans=in_chans)
    if data.held_out is not None:
        return data.held_out
    pairs = zip(list_samples("heldout"), load_samples("heldout"), strict=True)
    return [to_volume(image, in_chans=in_chans)._replace(key=one.name) for one, image in pairs]


def _image_steps(
    settings: Mapping[str, Any], volumes: Sequence[Volume], *, in_chans: int
) -> StepDataset:
    """Crops of images and synthesis."""
    section = settings["data"]
    share = section["synthetic_share"] if volumes else 1.0
    mix_up = section["mix_up"] if volumes else 0.0
    if not 0 <= section["thick_slices"] <= 1:
        raise UsageError(f"data.thick_slices must lie in [0, 1], got {section['thick_slices']}")
    augment = CropAugment(thick_prob=section["thick_slices"]) if section["augment"] else NO_AUGMENT
    return StepDataset(
        volumes,
        max_steps=settings["trainer"]["max_steps"],
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


def _labelled_steps(settings: Mapping[str, Any]) -> tuple[LabelledSteps, list[LabelMap]]:
    """Synthetic images of known anatomy, and the label maps that some of them show."""
    section, wanted = settings["data"], settings["disentangle"]
    severities, tokens = wanted["severities"], tuple(section["tokens"])
    if not isinstance(severities, list) or len(severities) != 2:
        raise UsageError(f"disentangle.severities must be [least,largest], got {severities}")
    if not 0 <= severities[0] <= severities[1] <= 1:
        raise UsageError(f"disentangle.severities must rise from 0 to 1, got {severities}")
    if wanted["num_views"] not in (1, 2):
        raise UsageError(f"disentangle.num_views must be 1 or 2, got {wanted['num_views']}")
    if any(count % 2 for count in tokens):  # the pyramid's coarsest map halves the tokens
        raise UsageError(f"disentangle takes even data.tokens, got {list(tokens)}")
    degrees = range(MAX_DEGREE + 1) if section["degrees"] is None else section["degrees"]
    maps = maps_to_train_on(section, degrees=degrees)
    source = known_anatomies(settings, maps)
    budget = wanted["token_budget"]
    steps = LabelledSteps(
        source,
        max_steps=settings["trainer"]["max_steps"],
        seed=settings["seed"],
        degrees=degrees,
        degrees_per_step=section["degrees_per_step"],
        flat_share=section["flat_share"],
        tokens=tokens,
        token_budget=section["token_budget"] if budget is None else budget,
    )
    return steps, maps


def known_anatomies(settings: Mapping[str, Any], maps: Sequence[LabelMap] = ()) -> LabelledSource:
    """Synthetic images of known anatomy, in the views that ``disentangle`` takes."""
    section, wanted = settings["data"], settings["disentangle"]
    return partial(
        labelled_images,
        source=_known_anatomy(section),
        severities=tuple(wanted["severities"]) if wanted["num_views"] == 2 else None,
        label_maps=maps,
        label_map_share=section["label_map_share"],
    )


def _synthesis(section: Mapping[str, Any]) -> SyntheticSource:
    """Synthesis with the anatomies that a ``data`` section asks for."""
    return partial(synthetic_images, source=_known_anatomy(section))


def _known_anatomy(section: Mapping[str, Any]) -> str:
    source = str(section["synthetic_anatomy"])
    if source not in ANATOMIES:
        raise UsageError(f"unknown data.synthetic_anatomy {source!r}{suggest(source, ANATOMIES)}")
    return source


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
        pairs = zip(list_samples("train"), images, strict=True)
        return [
            to_volume(image, in_chans=in_chans, dataset=one.source)._replace(modality=one.modality)
            for one, image in pairs
        ], names
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
