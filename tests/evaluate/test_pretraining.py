"""The summary: agreed keys, plain types, targets."""

import json
import math

import pytest

from spadnet.evaluate.held_out import HeldOut
from spadnet.evaluate.mim_figures import mim_figures
from spadnet.evaluate.pretraining import TARGETS, summary
from spadnet.evaluate.tokenizer_figures import tokenizer_figures
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer

KEYS = {
    "psnr_gain_db",
    "psnr_gain_db_min",
    "ssim",
    "codes_used_share",
    "perplexity_share",
    "mutual_information_nats",
    "mim_gain_share",
    "mim_gain_own_share",
}


def test_summary_has_the_agreed_keys_and_survives_json(
    images: list[HeldOut], tokenizer: Tokenizer, model: MaskedImageModel
) -> None:
    stage1 = tokenizer_figures(tokenizer, images)
    stage2 = mim_figures(model, tokenizer, images, window=(1, 3, 3), mask_ratio=0.5)
    figures = summary(images, stage1, stage2, minutes=3.5)
    extras = {"minutes", "by_degree", "images", "baselines", "targets", "reached"}
    assert figures.keys() == KEYS | extras
    assert figures["by_degree"].keys() == {"2", "5"}
    assert all(part.keys() == KEYS for part in figures["by_degree"].values())
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert len(figures["images"]) == 3
    gains = [row["psnr_gain_db"] for row in figures["images"]]
    assert figures["psnr_gain_db"] == pytest.approx(sum(gains) / 3)
    assert figures["psnr_gain_db_min"] == min(gains)
    assert figures["reached"].keys() == figures["targets"].keys() == TARGETS.keys()
    assert figures["reached"]["minutes"]


def test_targets_are_met_at_the_bound_and_never_by_nan() -> None:
    assert TARGETS["psnr_gain_db"].reached_by(3.0)
    assert not TARGETS["psnr_gain_db"].reached_by(2.999)
    assert TARGETS["minutes"].reached_by(10.0)
    assert not TARGETS["minutes"].reached_by(10.1)
    assert not TARGETS["minutes"].reached_by(math.nan)
