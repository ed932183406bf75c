"""Every fine-tuning experiment composes, its model can be built, and published figures are kept."""

import pytest
import torch
import yaml

from spadnet.cli.configure import configure
from spadnet.cli.finetune import with_length
from spadnet.cli.finetune_data import build_steps, preparation, window_of
from spadnet.cli.finetune_model import build_classifier, build_segmentor, recipe_optim
from spadnet.cli.training import plain
from spadnet.cli.usage import config_groups, config_root
from spadnet.data.task_images import TaskImage
from spadnet.data.tasks import TaskData
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.spacing import Spacing
from spadnet.train.optim import learning_rate

FOLDER = config_root() / "experiment"


def is_finetuning(name: str) -> bool:
    """Whether an experiment, or the one it builds on, says so."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if "stage" in content:
        return bool(content["stage"] == "finetune")
    above = [entry for entry in content["defaults"] if (FOLDER / f"{entry}.yaml").is_file()]
    return any(map(is_finetuning, above))


EXPERIMENTS = list(filter(is_finetuning, config_groups([config_root()])["experiment"]))
MAPS = {"btcv_base", "chaos_base", "hippocampus_tiny", "hippocampus_hour", "hippocampus_vit_tiny"}
CASE = TaskImage("a", torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), 0, Spacing(1, 1, 1))


def test_the_promised_experiments_are_there() -> None:
    classes = {"pneumonia_tiny", "adrenal_tiny", "medmnist_2d", "medmnist_3d"}
    small = {"pneumonia_vit_tiny", "adrenal_vit_tiny"}
    assert classes | small | MAPS == set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_can_be_built(experiment: str) -> None:
    config = configure("finetune", [f"experiment={experiment}"])
    assert config is not None
    settings = plain(config)
    is_map = experiment in MAPS
    with torch.device("meta"):
        if is_map:
            task = TaskData("x", "segmentation", ("background", "a", "b"), [])
            model = build_segmentor(settings, task)
        else:
            task = TaskData("x", "classification", ("a", "b"), [])
            model = build_classifier(settings, task)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    recipe_optim(settings)
    preparation(settings["data"], in_chans=1, is_map=is_map)
    build_steps(settings["data"], [CASE], seed=0, is_map=is_map, stride=16)


@pytest.mark.parametrize(
    ("experiment", "spacing", "crop"),
    [
        ("btcv_base", (3.0, 0.75, 0.75), (48, 192, 192)),
        ("chaos_base", (9.0, 1.62, 1.62), (32, 192, 192)),
    ],
)
def test_published_crops(
    experiment: str, spacing: tuple[float, float, float], crop: tuple[int, int, int]
) -> None:
    config = configure("finetune", [f"experiment={experiment}"])
    assert config is not None
    section = plain(config)["data"]
    steps = build_steps(section, [CASE], seed=0, is_map=True, stride=32)
    assert preparation(section, in_chans=1, is_map=True).spacing == spacing
    assert steps.size(Spacing(*spacing).degree()) == crop


@pytest.mark.parametrize(
    ("experiment", "batch", "in_chans"), [("btcv_base", 4, 3), ("chaos_base", 8, 2)]
)
def test_published_segmentation(experiment: str, batch: int, in_chans: int) -> None:
    config = configure("finetune", [f"experiment={experiment}"])
    assert config is not None
    settings = plain(config)
    optim = recipe_optim(settings)
    assert (settings["trainer"]["max_steps"], settings["data"]["batch_size"]) == (50_000, batch)
    assert (optim.lr, optim.ema, settings["validate"]["overlap"]) == (1e-4, 0, 0.75)
    assert settings["validate"]["flips"] == [0, 1, 2]
    with torch.device("meta"):
        task = TaskData("x", "segmentation", ("background", "a"), [])
        model = build_segmentor(settings, task)
    assert isinstance(model, VitSegmentor)
    assert model.pyramid.out_indices == (3, 5, 7, 11)
    assert model.vit.patch_embed.patch_size == 16
    assert (model.vit.in_chans, model.vit.embed_dim) == (in_chans, 768)


@pytest.mark.parametrize(
    ("experiment", "size", "degree"),
    [("medmnist_2d", (1, 160, 160), 5), ("medmnist_3d", (160, 160, 160), 0)],
)
def test_published_classification(experiment: str, size: tuple[int, int, int], degree: int) -> None:
    config = configure("finetune", [f"experiment={experiment}"])
    assert config is not None
    settings = plain(with_length(config, num_cases=4708))
    rule = preparation(settings["data"], in_chans=3, is_map=False)
    assert (rule.size, rule.degree, settings["data"]["batch_size"]) == (size, degree, 32)
    steps = settings["trainer"]["max_steps"]
    assert (steps, settings["validate"]["every_steps"]) == (14_800, 148)  # epochs of 4708 images
    optim = recipe_optim(settings)
    rates = [
        learning_rate(steps * share // 100, max_steps=steps, settings=optim)
        for share in (49, 50, 74, 75, 99)
    ]
    assert rates == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6, 1e-6])
    assert (settings["recipe"]["mode"], settings["model"]["global_pool"]) == ("full", None)


@pytest.mark.parametrize(
    ("share", "degrees", "thin"),
    [
        (0.4, [0], True),
        (0.4, [0, 5], True),
        (0.4, [0, 2], False),
        (0.4, [5], False),
        (0, [0], False),
    ],
)
def test_masks_are_decoded_thin_where_training_has_no_others(
    share: float, degrees: list[int], thin: bool
) -> None:
    config = configure("finetune", ["model=spad_unet_tiny", f"data.thick_slices={share}"])
    assert config is not None
    settings = plain(config)
    cases = [CASE._replace(degree=degree) for degree in degrees]
    settings["data"]["crop"] = [16, 16, 16]
    steps = build_steps(settings["data"], cases, seed=0, is_map=True, stride=2)
    unet = SpadUNet(in_chans=1, num_classes=2, features=(2, 4))
    assert window_of(settings, unet, steps).thin_logits == thin
