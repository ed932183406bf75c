"""The CSV log goes on where a run resumes."""

from pathlib import Path

from spadnet.train.metrics_log import CsvLog, read_rows


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
