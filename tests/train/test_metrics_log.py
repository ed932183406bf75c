"""The CSV log goes on where a run resumes."""

import math
from pathlib import Path

import torch

from spadnet.train.metrics_log import CsvLog, read_rows
from spadnet.train.per_degree import metrics_per_degree


def test_new_columns_and_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = CsvLog(path)
    for step in range(4):
        log.log_metrics({"loss": 1.0 / (step + 1), "epoch": 0}, step)
    log.log_metrics({"loss": 0.1, "norm": 2.0}, 4)
    with open(path, "a") as file:
        file.write("6")  # a kill in the middle of a row
    resumed = CsvLog(path, start_step=3)
    resumed.log_metrics({"norm": 3.0, "loss": 0.25}, 3)
    rows = read_rows(path)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[-1] == {"step": "4", "loss": "0.25", "norm": "3.0"}
    assert rows[0]["norm"] == ""


def test_a_degree_that_a_step_does_not_hold_leaves_no_value(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    for step, degree in enumerate((0, 5)):
        values = metrics_per_degree("loss", [(degree, torch.tensor(1.0 + degree))])
        log.log_metrics({name: float(value) for name, value in values.items()}, step)
    rows = read_rows(tmp_path / "metrics.csv")
    assert [(row["loss_degree0"], row["loss_degree5"]) for row in rows] == [
        ("1.0", ""),
        ("", "6.0"),
    ]
    assert "loss_degree3" not in rows[0]


def test_a_loss_that_is_not_a_number_is_shown(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    log.log_metrics({"loss": math.nan}, 0)
    assert read_rows(tmp_path / "metrics.csv")[0]["loss"] == "nan"
