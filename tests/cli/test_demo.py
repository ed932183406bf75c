"""The demo end to end with a handful of steps: files, keys, resume, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from spadnet.cli import main
from spadnet.cli.configure import configure
from spadnet.cli.demo import stage_arguments, tokenizer_source
from spadnet.cli.pretrain_mim import build_task
from spadnet.cli.trained import find_tokenizer
from spadnet.cli.training import plain
from spadnet.inference.encoder import load_encoder
from spadnet.weights.hub import load_tokenizer

KEYS = {
    "psnr_gain_db",
    "psnr_gain_db_min",
    "ssim",
    "codes_used_share",
    "perplexity_share",
    "mutual_information_nats",
    "mim_gain_share",
    "mim_gain_own_share",
    "minutes",
    "by_degree",
}
QUICK = ["tokenizer.max_steps=10", "mim.max_steps=10", "threads=1", "minutes=60"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "a run"
    assert main(["demo", f"out={out}", *QUICK]) == 0
    return out


def test_summary_has_all_figures(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert all(math.isfinite(summary[key]) for key in KEYS - {"by_degree"})
    assert set(summary["by_degree"]) == {"0", "1", "3", "5"}
    # Ten steps cannot have learned: the report must say so.
    assert not summary["reached"]["psnr_gain_db"]
    assert "not reached" in (demo / "report.html").read_text().lower()


def test_report_needs_no_other_file(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert "<script" not in page
    assert 'src="http' not in page
    assert "ct_lung_5mm" in page


def test_models_are_checkpoint_folders(demo: Path) -> None:
    tokenizer = load_tokenizer(demo / "tokenizer" / "tokenizer")
    encoder = load_encoder(demo / "mim" / "encoder")
    assert tokenizer.in_chans == encoder.model.in_chans == 1


def test_finished_demo_is_only_measured_again(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (demo / "mim" / "encoder" / "model.safetensors").read_bytes()
    assert main(["demo", f"out={demo}", "resume=auto", *QUICK]) == 0
    assert (demo / "mim" / "encoder" / "model.safetensors").read_bytes() == before
    assert "PSNR" in capsys.readouterr().out


def test_the_package_s_weights_are_a_start(tmp_path: Path) -> None:
    config = configure("demo", ["start=shipped", f"out={tmp_path}", "minutes=60", "threads=1"])
    assert config is not None
    arguments = stage_arguments(config, "mim", 3, "null")
    settings = configure("pretrain_mim", [*arguments, f"tokenizer={tokenizer_source(config)}"])
    assert settings is not None
    tokenizer = find_tokenizer(settings.tokenizer)
    vit = cast(Any, build_task(plain(settings), tokenizer).model_of("tokens")).vit
    encoder = load_encoder("spad_vit_tiny").model
    assert torch.equal(vit.pos_embed, encoder.pos_embed)
    assert len(vit.blocks) == len(encoder.blocks)


@pytest.mark.slow
def test_a_demo_that_starts_from_the_package_s_weights_skips_stage_1(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["demo", f"out={out}", "start=shipped", *QUICK]) == 0
    assert not (out / "tokenizer").exists()
    assert json.loads((out / "summary.json").read_text())["reached"]["psnr_gain_db"]
    assert "The package's tokenizer and 10 steps" in (out / "report.html").read_text()


def test_an_unknown_start_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", f"out={tmp_path / 'x'}", "start=shiped"]) == 2
    assert "start must be scratch or shipped, got 'shiped'" in capsys.readouterr().err


def test_a_demo_goes_on_from_where_it_started(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"out={demo}", "resume=auto", "start=shipped", *QUICK]) == 2
    assert "was begun with start=scratch" in capsys.readouterr().err


def test_misspelt_override_names_the_near_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"out={tmp_path / 'x'}", "tokenizer.max_step=3"]) == 2
    error = capsys.readouterr().err
    assert "max_steps" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()
