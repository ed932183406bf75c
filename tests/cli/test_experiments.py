"""Every experiment composes, and its models, losses and data can be built."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spadnet.cli import pretrain_mim, pretrain_tokenizer
from spadnet.cli.configure import configure
from spadnet.cli.data import build_data, load_volumes
from spadnet.cli.training import plain
from spadnet.cli.usage import UsageError, config_groups, config_root
from spadnet.data.crop_plan import crop_size
from spadnet.data.inputs import Item
from spadnet.data.prepare_folder import prepare_store
from spadnet.data.prepare_item import Settings
from spadnet.models.registry import create_model
from spadnet.models.tokenizer import Tokenizer

EXPERIMENTS = [
    name
    for name in config_groups([config_root()])["experiment"]
    if not re.search(
        "stage: (finetune|evaluate)", (config_root() / "experiment" / f"{name}.yaml").read_text()
    )
]
PARAMETERS = {
    "tokenizer_base": 34_253_955,
    "mim_base": 94_930_944,
    "mim_large": 315_498_432,
}


def stage_of(experiment: str) -> str:
    content = (config_root() / "experiment" / f"{experiment}.yaml").read_text()
    return "mim" if "stage: mim" in content else "tokenizer"


def test_the_promised_experiments_are_there() -> None:
    promised = {"tokenizer_base", "mim_base", "mim_large", "tokenizer_tiny", "mim_tiny"}
    promised |= {"mae_tiny", "rasd_tiny", "rasd_unet_tiny", "mixed_tiny"}
    assert promised <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_can_be_built(experiment: str) -> None:
    stage = stage_of(experiment)
    arguments = [f"experiment={experiment}", "data=synthesis"]
    if stage == "mim":
        arguments.append("tokenizer=somewhere")
    config = configure(f"pretrain_{stage}", arguments)
    assert config is not None
    settings = plain(config)
    with torch.device("meta"):
        if stage == "tokenizer":
            task = pretrain_tokenizer.build_task(settings)
            model, in_chans = task.tokenizer, task.tokenizer.in_chans
        else:
            size = "spad_vt_base" if settings["model"]["in_chans"] == 3 else "spad_vt_tiny"
            tokenizer = create_model(size)
            assert isinstance(tokenizer, Tokenizer)
            mim = pretrain_mim.build_task(settings, tokenizer)
            model, in_chans = pretrain_mim.encoder_of(mim), tokenizer.in_chans
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS.get(experiment, count)
    data = build_data(settings, in_chans=in_chans)
    assert data.module.max_steps == settings["trainer"]["max_steps"]
    assert data.names == ["spadnet synthesis"]


def test_published_figures() -> None:
    first = configure("pretrain_tokenizer", ["experiment=tokenizer_base"])
    assert first is not None
    assert (first.trainer.max_steps, first.optim.lr, first.discriminator.lr) == (
        500_000,
        1e-4,
        1e-3,
    )
    assert (first.optim.warmup_steps, first.optim.final_lr) == (25_000, 1e-6)
    assert (first.loss.prior_weight, first.loss.entropy_weight) == (0.03, 1.0)
    for name, num_mask_layers in (("mim_base", 12), ("mim_large", 6)):
        second = configure("pretrain_mim", [f"experiment={name}"])
        assert second is not None
        assert (second.trainer.max_steps, second.optim.lr, second.optim.clip) == (
            300_000,
            2e-5,
            0.5,
        )
        assert (second.optim.warmup_steps, second.mask_ratio) == (10_000, 0.55)
        assert second.model.num_mask_layers == num_mask_layers
        assert list(second.data.tokens) == [5, 10, 10]
        assert second.data.token_budget == 14 * 5 * 10 * 10


def test_crops_of_the_published_tokenizer() -> None:
    config = configure("pretrain_tokenizer", ["experiment=tokenizer_base"])
    assert config is not None
    depth, rows, columns = config.data.tokens
    sizes = [crop_size(degree, (depth, rows, columns)) for degree in range(6)]
    assert sizes == [(depth, 128, 128) for depth in (64, 32, 16, 8, 4, 1)]
    assert config.data.token_budget == 8 * depth * rows * columns
    assert config.data.degrees_per_step == 1


@pytest.mark.parametrize("name", ["tokenizer_base", "mim_base", "mim_large"])
def test_published_experiments_draw_sets_with_their_weights(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for dataset in ("IXI", "STOIC", "Kaggle-RDC"):
        np.save(tmp_path / "x.npy", rng.integers(1, 900, (8, 40, 40)).astype(np.int16))
        item = Item(tmp_path / "x.npy", dataset, dataset, spacing=(1.0, 1.0, 1.0))
        prepare_store([item], tmp_path / "stores" / dataset, settings=Settings(), workers=0)
    stage = stage_of(name)

    def section(*arguments: str) -> Any:
        own = [f"experiment={name}", *(["tokenizer=x"] if stage == "mim" else [])]
        config = configure(f"pretrain_{stage}", [*own, *arguments])
        assert config is not None
        return plain(config)["data"]

    def weights(*arguments: str) -> dict[str, float]:
        volumes, _ = load_volumes(section(*arguments), in_chans=1)
        return {volume.key: volume.weight for volume in volumes}

    path = f"data.path={tmp_path / 'stores'}"
    assert weights(path) == {"IXI": 0.5, "STOIC": 1.0, "Kaggle-RDC": 0.1}
    assert weights(path, "data.set_weights={STOIC:0}")["STOIC"] == 0
    assert set(weights(path, "data.published_weights=false").values()) == {1.0}
    with pytest.raises(UsageError, match=r"data\.path=FOLDER is missing"):
        weights()
    assert section("data=samples")["source"] == "samples"
