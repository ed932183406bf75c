"""The benchmark of loading runs and writes its figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_loading.py"


@pytest.mark.slow
def test_writes_figures_of_every_program(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(TOOL), "--repeats", "1", "--size", "spad_vit_tiny"]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    assert set(figures) == {"import", "names", "load_encoder"}
    for row in figures.values():
        assert set(row) == {"ratio", "baseline_ms", "ours_ms"}
        assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ours_ms"])


def test_loading_an_encoder_imports_neither_timm_nor_torchvision() -> None:
    # They take more than a second, and nothing that loads or computes needs them.
    program = (
        "import sys, spadnet; spadnet.load_encoder, spadnet.create_model; "
        "print({'timm', 'torchvision', 'monai', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
