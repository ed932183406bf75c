"""The benchmark compares equal crops, measures memory, and says what it could not measure."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

TOOLS = Path(__file__).resolve().parents[2] / "tools"
pytestmark = pytest.mark.usefixtures("tools")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tool's own modules importable, with small crops."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_data
    import data_forms

    for module in (bench_data, data_forms):
        monkeypatch.setattr(module, "CROP", (16, 32, 32))
    monkeypatch.setattr(bench_data.torch, "set_num_threads", lambda count: None)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A smooth volume with noise, larger than a crop."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in (40, 70, 60)), indexing="ij")
    array = 800 * np.sin(axes[0] + axes[1] * axes[2]) + rng.normal(0, 30, (40, 70, 60))
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.int16)), str(path))
    return path


def test_writes_ratios_of_equal_outputs(volume: Path, tmp_path: Path) -> None:
    from bench_data import TOLERANCE, main, measure, parse

    file = tmp_path / "figures.json"
    names = ("crop", "store_read", "store_size")
    only = [word for name in names for word in ("--only", name)]
    arguments = ["--volume", str(volume), *only, "--repeats", "1", "--json", str(file)]
    assert main(arguments) == 0
    figures = json.loads(file.read_text())
    assert set(figures) == set(names)
    for name in ("crop", "store_read"):
        row = figures[name]
        assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ours_ms"])
    size = figures["store_size"]
    assert size["ratio"] == pytest.approx(size["ours_mb"] / size["baseline_mb"])
    clock = iter(float(tick) for tick in range(1000))
    result = measure(["crop"], parse(arguments).volume, repeats=1, clock=lambda: next(clock))
    assert 0 < result["crop"].error < TOLERANCE
    assert result["crop"].ratio == 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_of_some_work_is_counted() -> None:
    from data_forms import peak_of

    assert peak_of(lambda: np.ones(1 << 22)) == pytest.approx(1 << 25, rel=0.05)
    assert peak_of(lambda: None) < 1 << 20


def test_different_outputs_are_a_failure(
    volume: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_data

    original = bench_data.spadnet_crop
    monkeypatch.setattr(bench_data, "spadnet_crop", lambda *a: original(*a) + 0.01)
    arguments = ["--volume", str(volume), "--only", "crop", "--repeats", "1"]
    assert bench_data.main(arguments) == 1
    assert "crop: outputs differ by 1.0e-02" in capsys.readouterr().out


def test_a_missing_rival_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    import bench_data

    monkeypatch.setitem(sys.modules, "bench_data_synthesis", None)
    file = tmp_path / "figures.json"
    assert bench_data.main(["--only", "synth_torchio", "--json", str(file)]) == 1
    assert "not measured (pip install torchio)" in capsys.readouterr().out
    assert json.loads(file.read_text()) == {}


def test_the_volume_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    from bench_data import main

    with pytest.raises(SystemExit) as stop:
        main(["--only", "crop"])
    assert stop.value.code == 2
    assert "--volume FILE is missing" in capsys.readouterr().err
