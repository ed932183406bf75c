"""Objectives from the command line: what a run of each leaves, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spadnet.cli import main
from spadnet.inference.encoder import load_encoder
from spadnet.models.spad_unet import SpadUNet
from spadnet.weights.hub import load_pretrained

Capture = pytest.CaptureFixture[str]
TINY = (
    "data=folder",
    "data.tokens=[2,2,2]",
    "data.token_budget=8",
    "data.degrees_per_step=1",
    "data.synthetic_share=0.0",
    "disentangle.token_budget=8",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "validate.per_degree=1",
    "validate.tokens=[2,4,4]",
    "logger.tensorboard=false",
    "callbacks.show_progress=false",
)


@pytest.fixture
def pretrain(pictures: Path, tmp_path: Path) -> Callable[..., int]:
    """Pre-train a small ViT without a tokenizer, in ``tmp_path / "run"``."""

    def run(*argv: str) -> int:
        images = f"data.path={pictures}"
        return main(["pretrain-mim", *TINY, images, f"out={tmp_path / 'run'}", *argv])

    return run


@pytest.mark.parametrize(
    ("arguments", "pool", "facts"),
    [
        (["experiment=mae_tiny"], "token", {"objective": {"pixels": 1.0}, "synthetic_share": 0.0}),
        (
            ["experiment=rasd_tiny", "data=synthesis"],
            "avgstd",
            {"objective": {"disentangle": 1.0}},
        ),
        (
            ["experiment=rasd_tiny", "data=synthesis", "model.global_pool=avg"],
            "avg",
            {"objective": {"disentangle": 1.0}},
        ),
        (
            ["experiment=mixed_tiny"],
            "token",
            {
                "objective": {"pixels": 1.0, "disentangle": 0.5},
                "disentangle": "labelled synthetic images alone",
            },
        ),
    ],
)
def test_objectives_need_no_tokenizer_and_say_what_they_were(
    pretrain: Callable[..., int],
    pictures: Path,
    tmp_path: Path,
    arguments: list[str],
    pool: str,
    facts: dict[str, Any],
) -> None:
    assert pretrain(*arguments, "model.depth=2") == 0
    folder = tmp_path / "run" / "encoder"
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["arguments"]["global_pool"] == pool
    assert config["training"].items() >= facts.items()
    assert ("my pictures" in config["training"]["data"]) == ("data=synthesis" not in arguments)
    assert ("spadnet synthesis" in config["training"]["data"]) == ("disentangle" in str(facts))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    for name in ("pixels", "disentangle"):
        assert (f"val/{name}_loss" in found) == (name in facts["objective"])
    assert (tmp_path / "run" / "panels").exists() == ("pixels" in facts["objective"])
    card = (folder / "README.md").read_text()
    assert all(f"- {name}: {value}" in card for name, value in facts.items())
    embedding = load_encoder(folder)(pictures / "a.png")
    mean = embedding.tokens.flatten(0, 2).mean(0)
    pooled = embedding.cls[: len(mean)]
    assert torch.allclose(pooled, mean, atol=1e-5) == pool.startswith("avg")
    feature = {
        "token": "the class token",
        "avg": "the mean of",
        "avgstd": "the mean and the standard",
    }
    assert f"The feature of an image (`.cls`) is {feature[pool]}" in card


def test_unet_is_a_start_of_segmentation(
    pretrain: Callable[..., int], finetune: Callable[..., int], maps: Path, tmp_path: Path
) -> None:
    line = ["experiment=rasd_unet_tiny", "data=synthesis", "disentangle.num_views=1"]
    assert pretrain(*line, f"out={tmp_path / 'first'}") == 0
    unet = load_pretrained(tmp_path / "first" / "unet")
    assert isinstance(unet, SpadUNet)
    arguments = ("model=spad_unet_tiny", f"init={tmp_path / 'first'}", f"data.path={maps}")
    task = ("data.classes=[background,blob]", "data.crop=[16,32,32]", "data.batch_size=2")
    still = ("trainer.max_steps=1", "optim.lr=1e-12", "optim.warmup_steps=0", "test=false")
    assert finetune(*arguments, *task, *still) == 0
    found = load_pretrained(tmp_path / "run" / "best").state_dict()
    for name, value in unet.state_dict().items():
        if "heads." not in name:
            torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["objective=pixles"], 2, "unknown objective 'pixles'; did you mean 'pixels'"),
        (["objective=[pixels]"], 2, "objective must be a name or names with weights"),
        (["objective={pixels: -1}"], 2, "objective.pixels must be a number from 0 on, got -1"),
        (["objective={pixels: true}"], 2, "objective.pixels must be a number from 0 on, got True"),
        (["objective={pixels: 0}"], 2, "names none; choose of tokens, pixels, disentangle"),
        (["objective={tokens: 1, pixels: 1}"], 2, "tokenizer=FOLDER is missing"),
        (["objective=pixels", "pixels.mask_ratio=1"], 1, "mask_ratio must lie between 0 and 1"),
        (["objective=pixels", "pixels.decoder_dim=100"], 1, "decoder_dim must be a multiple of 64"),
        (["objective=pixels", "+pixels.depth=2"], 2, "pixels.depth: no such argument"),
        (["objective=disentangle", "data.tokens=[2,3,2]"], 2, "even data.tokens, got [2, 3, 2]"),
        (
            ["objective=disentangle", "disentangle.num_views=3"],
            2,
            "num_views must be 1 or 2, got 3",
        ),
        (["objective=disentangle", "disentangle.severities=[0.9,0.1]"], 2, "must rise from 0 to 1"),
        (["objective=disentangle", "disentangle.severities=[0.5]"], 2, "must be [least,largest]"),
        (["objective=disentangle", "disentangle.temperature=0"], 1, "temperature must be positive"),
        (["objective=disentangle", "data.synthetic_anatomy=shape"], 2, "did you mean 'shapes'"),
        (["objective=pixels", "model=spad_unet_tiny"], 2, "with objective=disentangle"),
    ],
)
def test_wrong_objective_is_told_in_one_line(
    pretrain: Callable[..., int],
    tmp_path: Path,
    capsys: Capture,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert pretrain(*arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()
