"""Meters tell speed, memory and losses of sources, also where a run is resumed between two rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import LightningModule

from spadnet.train.meters import Meters, Source, code_use, num_tokens
from spadnet.train.metrics_log import read_rows
from spadnet.train.run import FitResult

BuildTask = Callable[[int], LightningModule]
Fit = Callable[..., FitResult]

SPEED = {
    "speed/seconds_per_step",
    "speed/images_per_second",
    "speed/tokens_per_second",
    "speed/data_wait_share",
    "speed/model_flops_per_second",
    "speed/share_of_matmul_peak",
    "memory/process_peak_mb",
}


def sources() -> dict[str, Source]:
    """Two data sets, one of the first sample of each micro-batch and one of the second."""
    names = (Source("first", "CT"), Source("second", "MR"))
    return {
        f"{step}-{degree}-{i}": names[i] for step in range(9) for degree in (5, 3) for i in (0, 1)
    }


def run(fit: Fit, task: LightningModule, folder: Path, **options: object) -> list[dict[str, str]]:
    meters = Meters(folder, sources=sources(), codebook_size=8)
    fit(task, folder, callbacks=[meters], max_steps=6, log_every_steps=3, **options)
    return read_rows(folder / "metrics.csv")


def test_a_row_tells_speed_rates_and_sources(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    rows = run(quick_fit, build_task(6), tmp_path)
    assert [row["step"] for row in rows] == ["3", "6"]
    for row in rows:
        assert all(float(row[name]) > 0 for name in SPEED - {"speed/data_wait_share"})
        assert 0 <= float(row["speed/data_wait_share"]) <= 1
        tokens, images = (float(row[f"speed/{name}_per_second"]) for name in ("tokens", "images"))
        assert tokens / images == pytest.approx(4.0)  # a flat crop and one of two slices: 2 x 2
        assert float(row["train/lr"]) > 0
        for name in ("dataset/first", "dataset/second", "modality/CT", "modality/MR"):
            assert float(row[f"loss_per_{name}"]) > 0
        # No other source has been seen.
        assert not any("unknown" in name or "synthesis" in name for name in row)
    peak = json.loads((tmp_path / "matmul_peak.json").read_text())
    rate = float(rows[0]["speed/model_flops_per_second"])
    share = float(rows[0]["speed/share_of_matmul_peak"])
    assert rate / peak["flops_per_second"] == pytest.approx(share)


def test_losses_of_sources_average_to_the_loss_of_the_steps(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    task = build_task(6)
    meters = Meters(tmp_path, sources=sources())
    quick_fit(task, tmp_path, callbacks=[meters], max_steps=6, log_every_steps=1)
    for row in read_rows(tmp_path / "metrics.csv"):
        parts = [float(row[f"loss_per_dataset/{name}"]) for name in ("first", "second")]
        name = "train/reconstruction" if "train/reconstruction" in row else "train/loss"
        assert sum(parts) / 2 == pytest.approx(float(row[name]), rel=1e-4)


def test_resumed_between_two_rows_gives_the_same_sums(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    whole = run(quick_fit, build_task(6), tmp_path / "whole")
    broken = tmp_path / "broken"
    run(quick_fit, build_task(6), broken, save_every_steps=4)
    (broken / "checkpoints" / "step-00000006.ckpt").unlink()
    resumed = run(quick_fit, build_task(6), broken, resume="auto")
    for mine, other in zip(whole, resumed, strict=True):
        assert {k: v for k, v in mine.items() if k.split("/")[0] not in ("speed", "memory")} == {
            k: v for k, v in other.items() if k.split("/")[0] not in ("speed", "memory")
        }


def test_codes_in_use_and_their_perplexity() -> None:
    used, perplexity = code_use(torch.tensor([3.0, 3.0, 0.0, 0.0]))
    assert (used, perplexity) == (0.5, pytest.approx(2.0))


def test_tokens_of_a_sample() -> None:
    assert num_tokens((2, 1, 8, 64, 32), 2, stride=16) == 2 * 4 * 2
    assert num_tokens((2, 1, 1, 28, 28), 5, stride=16) == 1
