"""What pre-training is validated on, from a ``validate`` section."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import nn

from spadnet.cli.data import Data, known_anatomies, load_held_out
from spadnet.cli.finetune_data import find_task, preparation, read_split
from spadnet.cli.objectives import objective_weights
from spadnet.cli.usage import UsageError, config_root
from spadnet.data.task_images import TaskImage
from spadnet.evaluate.held_out import HeldOut, token_grid, window_size
from spadnet.evaluate.held_out_views import held_out_views
from spadnet.evaluate.knn_probe import probe_accuracy
from spadnet.evaluate.objective_scores import (
    Anatomy,
    make_anatomies,
    pixel_pictures,
    pixel_scores,
    prototype_scores,
)
from spadnet.evaluate.validation import (
    MaskRule,
    mim_pictures,
    mim_scores,
    one_of_each_degree,
    tokenizer_pictures,
    tokenizer_scores,
)
from spadnet.losses.perceptual import build_perceptual
from spadnet.models.dense import UNetDenseFeatures, VitDenseFeatures
from spadnet.models.mae import MaskedAutoencoder
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.synthesis.dataset import NUM_LABELS
from spadnet.train.validation import Judge, Picture, Scores, Validate

logger = logging.getLogger(__name__)

_LPIPS = "lpips-vgg16"


def build_validation(
    settings: Mapping[str, Any],
    data: Data,
    folder: Path,
    *,
    in_chans: int | None,
    min_tokens: int = 1,
    judge: Callable[[Sequence[HeldOut]], Judge],
) -> Validate | None:
    """Validation of a pre-training; None where it was switched off.

    Args:
        settings: Composed configuration as plain types.
        data: Batches of the training, and the images kept out of it.
        folder: Run folder.
        in_chans: Channels of the images; None where the training takes none.
        min_tokens: Images whose windows have fewer tokens are left out.
        judge: How a model is judged on held-out images.
    """
    section = settings["validate"]
    if section["every_steps"] is None:
        return None
    images = [] if in_chans is None else _held_out(settings, data, in_chans, min_tokens)
    return Validate(
        judge(images),
        folder,
        every_steps=section["every_steps"],
        panels_every_steps=section["panels_every_steps"],
    )


def _held_out(
    settings: Mapping[str, Any], data: Data, in_chans: int, min_tokens: int
) -> list[HeldOut]:
    section, window = settings["validate"], settings["data"]["tokens"]
    images = held_out_views(
        load_held_out(section, data, in_chans=in_chans),
        degrees=data.degrees,
        per_degree=section["per_degree"],
        tokens=section["tokens"],
    )
    if not images:
        raise UsageError("validate.path: no image has a degree that the training draws")
    large = [
        one
        for one in images
        if math.prod(window_size(window, token_grid(one.image, one.degree), one.degree))
        >= min_tokens
    ]
    if len(large) < len(images):
        logger.warning(
            "%d of %d held-out images are too small to hide a part of them, and left out",
            len(images) - len(large),
            len(images),
        )
    images = large
    counts = {degree: sum(image.degree == degree for image in images) for degree in data.degrees}
    words = ", ".join(f"{count} of degree {degree}" for degree, count in counts.items())
    logger.info("validation on held-out images: %s", words)
    return images


def tokenizer_judge(settings: Mapping[str, Any], images: Sequence[HeldOut]) -> Judge:
    """Judge of stage 1: reconstruction and codes."""
    weights, loss = settings["validate"]["lpips_weights"], settings["loss"]
    if weights is None and loss["perceptual"] == _LPIPS:
        weights = loss["perceptual_weights"]
    lpips = None if weights is None else build_perceptual(_LPIPS, weights)
    shown = one_of_each_degree(images)

    def score(model: nn.Module) -> Scores:
        if lpips is not None:
            cast(Any, lpips).to(next(model.parameters()).device)
        return Scores(*tokenizer_scores(cast(Tokenizer, model), images, perceptual=lpips))

    return Judge(score, lambda model: _pictures(tokenizer_pictures(cast(Tokenizer, model), shown)))


def encoder_judge(
    settings: Mapping[str, Any],
    images: Sequence[HeldOut],
    *,
    tokenizer: Tokenizer | None,
    degrees: Sequence[int],
) -> Judge:
    """Judge of an encoder: each objective beside what knows nothing; perhaps a probe.

    Args:
        settings: Composed configuration as plain types.
        images: Held-out images, of the objectives that take images.
        tokenizer: Of the objective ``tokens``.
        degrees: That the training draws.
    """
    window, seed = tuple(settings["data"]["tokens"]), settings["seed"]
    rule = MaskRule(window, settings["mask_ratio"], seed)
    sparse = rule._replace(mask_ratio=settings["pixels"]["mask_ratio"])
    shown = one_of_each_degree(images)
    section = settings["validate"]["probe"]
    if section["path"] is not None and str(settings["model"]["name"]).startswith("spad_unet_"):
        raise UsageError("validate.probe is for a spad_vit")
    probe = None if section["path"] is None else probe_cases(section, seed=seed)
    anatomies: list[Anatomy] = []
    if "disentangle" in objective_weights(settings):
        anatomies = make_anatomies(
            known_anatomies(settings),
            degrees=degrees,
            per_degree=settings["validate"]["per_degree"],
            tokens=window,
        )

    def score(model: nn.Module) -> Scores:
        values: dict[str, float] = {}
        for part in model.modules():
            if isinstance(part, MaskedImageModel) and tokenizer is not None and images:
                values |= mim_scores(part, tokenizer, images, rule)
            elif isinstance(part, MaskedAutoencoder) and images:
                values |= _named("pixels", pixel_scores(part, images, sparse))
            elif isinstance(part, VitDenseFeatures | UNetDenseFeatures):
                found = prototype_scores(
                    part,
                    anatomies,
                    num_labels=max(NUM_LABELS),
                    temperature=settings["disentangle"]["temperature"],
                )
                values |= _named("disentangle", found)
        vit = next((part for part in model.modules() if isinstance(part, SpadViT)), None)
        if probe is not None and vit is not None:
            train, val = probe
            neighbours = section["neighbours"]
            values["knn_accuracy"] = probe_accuracy(vit, train, val, neighbours=neighbours)
        return Scores(values)

    def draw(model: nn.Module) -> Iterator[Picture]:
        for part in model.modules():
            if isinstance(part, MaskedImageModel) and tokenizer is not None:
                yield from _pictures(mim_pictures(part, tokenizer, shown, rule))
            elif isinstance(part, MaskedAutoencoder):
                yield from _pictures(pixel_pictures(part, shown, sparse))

    return Judge(score, draw)


def _named(objective: str, scores: Mapping[str, float]) -> dict[str, float]:
    return {f"{objective}_{name}": value for name, value in scores.items()}


def probe_cases(
    section: Mapping[str, Any], *, seed: int
) -> tuple[list[TaskImage], list[TaskImage]]:
    """Labelled cases of training and validation for a probe; the same ones each time.

    Args:
        section: The ``validate.probe`` section.
        seed: Which cases are taken where there are more than ``max_cases``.
    """
    text = (config_root() / "data" / "labelled.yaml").read_text(encoding="utf-8")
    labelled = {**yaml.safe_load(text), "path": section["path"], "size": section["size"]}
    task = find_task({"data": labelled, "seed": seed, "test": False})
    if task.kind not in ("classification", "ordinal"):
        raise UsageError(f"validate.probe.path: {task.name} is {task.kind}, a probe needs classes")
    rule = preparation(labelled, in_chans=1, is_map=False)
    order = torch.Generator().manual_seed(seed)
    splits = []
    for split in ("train", "val"):
        cases = task.of(split)
        chosen = torch.randperm(len(cases), generator=order)[: section["max_cases"]].sort().values
        few = task._replace(cases=[cases[i] for i in chosen.tolist()])
        splits.append(read_split(few, split, rule=rule))
    return splits[0], splits[1]


def _pictures(found: Iterable[tuple[str, np.ndarray]]) -> Iterator[Picture]:
    return (Picture(*pair) for pair in found)
