"""The benchmark of synthesis times what it says, and tells when the other package is missing."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_data_synthesis

    return bench_data_synthesis


class Rival:
    """Stands for cornucopia; counts its runs."""

    def __init__(self, image=None) -> None:
        self.runs, self.image = 0, image

    def __call__(self, labels):
        self.runs += 1
        image = torch.rand(labels.shape) if self.image is None else self.image
        return {"image": image, "label": labels}


def install(monkeypatch: pytest.MonkeyPatch, rival: Rival) -> None:
    module = SimpleNamespace(SynthFromLabelTransform=lambda: rival)
    monkeypatch.setitem(sys.modules, "cornucopia", module)


@pytest.mark.parametrize("name", ["synth_cornucopia", "anatomy_cornucopia"])
def test_both_forms_run_and_the_first_does_not_count(bench, monkeypatch, name):
    rival, ticks = Rival(), iter(range(100))
    install(monkeypatch, rival)
    threads = torch.get_num_threads()
    baseline, ours = bench.measure(name, repeats=3, size=32, clock=lambda: next(ticks))
    assert (baseline, ours) == (1000, 1000)  # one tick each
    assert rival.runs == 4
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (torch.zeros(1, 32, 32, 32), "constant"),
        (torch.full((1, 32, 32, 32), torch.nan), "not finite"),
        (torch.rand(1, 16, 32, 32), "expected"),
    ],
)
def test_what_makes_no_image_is_not_timed(bench, monkeypatch, image, named):
    install(monkeypatch, Rival(image))
    with pytest.raises(RuntimeError, match=named):
        bench.measure("synth_cornucopia", repeats=1, size=32)


@pytest.mark.parametrize(
    ("name", "package"), [("synth_torchio", "torchio"), ("synth_cornucopia", "cornucopia")]
)
def test_missing_package_is_named(bench, monkeypatch, capsys, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        bench.measure(name, repeats=1, size=16)
    assert bench.main(["--only", name, "--size", "16"]) == 1
    assert f"pip install {package}" in capsys.readouterr().err


def test_unknown_name_is_refused(bench):
    with pytest.raises(ValueError, match="synth_monai"):
        bench.measure("synth_monai", repeats=1)
