"""The benchmark runs its forms, compares outputs, and tells when they differ."""

import json
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tools importable."""
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.mark.parametrize("model", ["spad_vt_tiny", "spad_vit_tiny"])
def test_writes_a_ratio(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bench_inference

    file = tmp_path / "figures.json"
    arguments = ["--model", model, "--tiny", "--repeats", "1", "--only", "specialised"]
    assert bench_inference.main([*arguments, "--json", str(file)]) == 0
    assert "specialised" in capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert set(figures) == {"specialised"}
    row = figures["specialised"]
    assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ours_ms"])


@pytest.mark.parametrize("model", ["spad_vt_tiny", "spad_vit_tiny"])
@pytest.mark.parametrize("form", ["specialised", "bfloat16"])
def test_forms_give_what_eager_gives(
    model: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench_inference

    monkeypatch.setattr(bench_inference, "has_fast_bfloat16", lambda device: True)
    image = torch.rand(1, 1, 4, 32, 32)
    net = bench_inference.load(model)
    with torch.inference_mode():
        expected, found = (
            bench_inference.build(name, net, image, 2, 1)() for name in ("eager", form)
        )
    tolerance = bench_inference.TOLERANCE.get(form, bench_inference.EXACT)
    assert bench_inference.relative_error(found.float(), expected) < tolerance


def test_colour_model_sees_the_grey_image_in_all_channels() -> None:
    import bench_inference

    torch.manual_seed(0)
    net = bench_inference.create_model("spad_vt_tiny", in_chans=3).eval()
    image = torch.rand(1, 1, 4, 32, 32)
    with torch.inference_mode():
        expected, found = (
            bench_inference.build(name, net, image, 2, 1)() for name in ("eager", "specialised")
        )
        assert torch.equal(expected, net.token_logits(image.expand(-1, 3, -1, -1, -1), 2))
    assert bench_inference.relative_error(found, expected) < 1e-4


def test_different_outputs_and_absent_backends_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_inference

    result = bench_inference.Result(2.0, 1.0, float("nan"))
    monkeypatch.setattr(bench_inference, "measure", lambda arguments: {"compiled": result})
    assert bench_inference.main([]) == 1
    assert "compiled: outputs differ by nan" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(bench_inference, "has_fast_bfloat16", lambda device: False)
    arguments = ["--model", "spad_vt_tiny", "--tiny", "--repeats", "1", "--only", "bfloat16"]
    assert bench_inference.main(arguments) == 1  # nothing could run
    assert "bfloat16: left out: this processor has no bfloat16" in capsys.readouterr().out
    assert bench_inference.main(["--model", "no/such/folder"]) == 1
    assert "error: " in capsys.readouterr().err
