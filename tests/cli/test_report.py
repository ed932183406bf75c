"""One page of a run folder, whatever state the run is in."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spadnet.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a killed run has left: no summary, and a row that was being written."""
    folder = tmp_path / "my run"
    (folder / "panels" / "step-00000010").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "name: mine\nstage: mim\nseed: 3\nmodel: {name: spad_vit_tiny}\ntrainer: {max_steps: 99}\n"
    )
    (folder / "metrics.csv").write_text("step,train/loss,val/loss\n10,2.5,2.25\n20,2.0,\n30,9")
    return folder


def test_an_unfinished_run(run_folder: Path, capsys: Capture) -> None:
    (run_folder / "versions.json").write_text('{"torch": "2.')
    assert main(["report", str(run_folder)]) == 0
    page = (run_folder / "report.html").read_text()
    assert "not finished: 20 of 99 steps; the last training loss is 2" in page
    assert "versions.json: not JSON; left out" in capsys.readouterr().err


def test_a_damaged_metrics_file_costs_its_bad_rows_only(run_folder: Path) -> None:
    rows = b"step,train/loss\n1,0.5\nx,7\n2,\xff\n\x00\n3,0.25,9,9\n"
    (run_folder / "metrics.csv").write_bytes(rows)
    assert main(["report", f"in={run_folder}", f"out={run_folder / 'x.html'}"]) == 0
    assert "3 of 99 steps; the last training loss is 0.25" in (run_folder / "x.html").read_text()


def test_an_empty_run(run_folder: Path) -> None:
    (run_folder / "metrics.csv").unlink()
    assert main(["report", str(run_folder)]) == 0
    assert "nothing has been logged yet" in (run_folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason", "code"),
    [
        ([], "takes the folder of one run, got 0", 2),
        (["nothing"], "nothing: no such folder", 1),
        (["."], "not the folder of a run, config.yaml is missing; there are runs below: my run", 1),
        (["my run", "--quick"], "unknown option", 2),
        (["my run", "to=x"], "report takes RUN and out=FILE", 2),
        (["my run", "out=."], "out=.: a folder", 2),
    ],
)
def test_mistakes_are_one_line(
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    reason: str,
    code: int,
) -> None:
    monkeypatch.chdir(run_folder.parent)
    assert main(["report", *arguments]) == code
    words = capsys.readouterr().err.strip()
    assert reason in words
    assert "\n" not in words
    assert not list(run_folder.glob("*.html"))


def test_a_fine_tuned_run(finetune: Callable[..., int], tmp_path: Path) -> None:
    assert finetune("data.size=[1,32,32]", "model=spad_conv_tiny") == 0
    folder = tmp_path / "run"
    told = json.loads((folder / "data.json").read_text())
    assert told["cases"] == {"test": 6, "train": 12, "val": 6}
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "<h2>Test split</h2>" in page
    assert "finished: 4 of 4 steps" in page
    assert told["sha256"] in page
