"""Exported files compute what the model computes, at any batch and size, and say what they take."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spadnet.inference import export
from spadnet.inference.export import export_model, read_metadata
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.spacing import required_multiple
from spadnet.weights.contract import contract_of

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Tracing takes seconds, so that most combinations are left to -m slow.
SLOW = pytest.mark.slow


def tokenizer(quantizer: Any = "soft") -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(
        in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=11, quantizer=quantizer
    ).eval()


def vit(**changes: Any) -> SpadViT:
    torch.manual_seed(0)
    arguments = {"in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 1, "pos_grid": (2, 3, 3)}
    model = SpadViT(**{**arguments, **changes}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def image(degree: int, *size: int, in_chans: int = 1) -> Tensor:
    patch = required_multiple(degree)
    return torch.rand(
        size[0], in_chans, *(n * step for n, step in zip(size[1:], patch, strict=True))
    )


def run_onnx(file: Path, x: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(None, {"image": x.numpy()})
    return dict(zip(names, map(torch.from_numpy, outputs), strict=True))


@pytest.mark.parametrize(
    "degree", [pytest.param(d, marks=() if d == 2 else SLOW) for d in range(6)]
)
def test_tokenizer_in_onnx_equals_the_model(degree: int, tmp_path: Path) -> None:
    model, file = tokenizer(), tmp_path / "new" / "model.onnx"
    error = export_model(model, file, degree=degree, facts={"licence": "Apache-2.0"})
    assert error < 1e-4
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]
    for size in ((1, 1, 1, 1), (2, 3, 1, 4)):
        x = image(degree, *size)
        outputs = run_onnx(file, x)
        with torch.no_grad():
            reconstruction, tokens = model(x, degree)
        torch.testing.assert_close(outputs["reconstruction"], reconstruction, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(outputs["logits"], tokens.logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(outputs["codes"], tokens.index)
    found = read_metadata(file)
    assert found["degree"] == degree
    assert found["patch"] == list(required_multiple(degree))
    assert found["licence"] == "Apache-2.0"
    assert found["outputs"] == ["reconstruction", "codes", "logits"]


@pytest.mark.parametrize(
    "degree", [pytest.param(d, marks=() if d == 5 else SLOW) for d in range(6)]
)
def test_encoder_in_onnx_equals_the_model(degree: int, tmp_path: Path) -> None:
    model, file = vit(num_classes=3), tmp_path / "model.onnx"
    assert export_model(model, file, degree=degree) < 1e-4
    for size in ((1, 1, 1, 1), (2, 1 if degree == 5 else 2, 5, 1)):
        x = image(degree, *size)
        outputs = run_onnx(file, x)
        assert list(outputs) == ["cls", "tokens", "logits"]
        with torch.no_grad():
            features, logits = model.forward_features(x, degree), model(x, degree)
        torch.testing.assert_close(outputs["cls"], features[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(outputs["tokens"], features[:, 1:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(outputs["logits"], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        vit(in_chans=3, global_pool="avg", num_registers=2),
        vit(mlp="gelu", norm_after_pool=True, global_pool="avg"),
        vit(global_pool="avgstd"),
        tokenizer("nearest"),
        tokenizer("gumbel"),
    ],
    ids=["colour", "gelu", "statistics", "nearest", "gumbel"],
)
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_other_forms_pass_their_own_check(model: Any, format: Any, tmp_path: Path) -> None:
    assert export_model(model, tmp_path / "model", degree=1, format=format) < 1e-4


def fine_tuned(kind: str) -> Any:
    torch.manual_seed(0)
    encoder = vit(embed_dim=24, depth=4, num_heads=2)
    model = {
        "classifier": lambda: AttentionClassifier(encoder, num_classes=3),
        "segmentor": lambda: VitSegmentor(encoder, num_classes=3, widths=(8,) * 6),
        "tokenizer": lambda: TokenizerSegmentor(
            encoder_widths=(8, 8, 16), num_classes=3, widths=(8,) * 5
        ),
        "unet": lambda: SpadUNet(in_chans=1, num_classes=3, features=(8, 16)),
        "conv": lambda: SpadConvNet(in_chans=1, num_classes=3, widths=(8, 16)),
    }[kind]().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    ("kind", "degree", "format"),
    [
        ("conv", 2, "torch_export"),
        ("unet", 2, "torch_export"),
        ("tokenizer", 2, "torch_export"),
        *(
            pytest.param(kind, degree, "onnx", marks=SLOW)
            for kind in ("classifier", "segmentor", "unet", "conv", "tokenizer")
            for degree in range(6)
        ),
    ],
)
def test_fine_tuned_models_give_logits(kind: str, degree: int, format: Any, tmp_path: Path) -> None:
    model, file = fine_tuned(kind), tmp_path / "model.onnx"
    error = export_model(model, file, degree=degree, format=format)
    size = [2 * step for step in required_multiple(degree, stride=contract_of(model).stride)]
    x = torch.rand(2, 1, *size)
    with torch.no_grad():
        expected = model(x, degree)
    scale = max(expected.abs().max().item(), 1)
    assert expected.std() > 1e-2
    assert error < 1e-4 * scale
    if format == "onnx":
        found = run_onnx(file, x)["logits"]
    else:
        (found,) = torch.export.load(file).module(check_guards=False)(x)
    torch.testing.assert_close(found, expected, atol=1e-4 * scale, rtol=0)


def test_model_in_half_precision_is_exported_in_full_and_left_as_it_is(tmp_path: Path) -> None:
    model = tokenizer().bfloat16()
    export_model(model, tmp_path / "model.pt2", degree=5, format="torch_export")
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.export, "save", refuse)
    with pytest.raises(OSError, match=r"No space left on device.*model\.pt2"):
        export_model(tokenizer(), tmp_path / "model.pt2", degree=5, format="torch_export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("build", "degree"),
    [(tokenizer, 0), pytest.param(vit, 2, marks=SLOW), pytest.param(vit, 5, marks=SLOW)],
)
def test_program_equals_the_model(build: Any, degree: int, tmp_path: Path) -> None:
    model, file = build(), tmp_path / "model.pt2"
    error = export_model(model, file, degree=degree, format="torch_export", facts={"a": [1, "b"]})
    assert error < 1e-4
    program = torch.export.load(file)
    for size, guards in (((2, 3, 3, 2), True), ((1, 1, 1, 1), False)):
        x = image(degree, *size)
        with torch.no_grad():
            outputs = program.module(check_guards=guards)(x)
            expected = model(x, degree)
        found = expected[0] if build is tokenizer else expected
        torch.testing.assert_close(outputs[0], found, atol=1e-4, rtol=1e-4)
    assert read_metadata(file)["a"] == [1, "b"]


def test_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.pt2"
    file.write_text("old")
    model = tokenizer()
    specialise = export.specialise

    def wrong(*arguments: Any, **options: Any) -> Any:
        net = specialise(*arguments, **options)
        with torch.no_grad():
            net.model.decoder.head.bias.add_(0.01)  # type: ignore[union-attr]
        return net

    monkeypatch.setattr(export, "specialise", wrong)
    with pytest.raises(ValueError, match=r"not written: reconstruction of an image .* differs by"):
        export_model(model, file, degree=5, format="torch_export")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_refuses_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="degree must be 0 to 5, got 6"):
        export_model(vit(), tmp_path / "x.onnx", degree=6)
    with pytest.raises(ValueError, match="format must be one of onnx, torch_export, got 'tflite'"):
        export_model(vit(), tmp_path / "x.onnx", degree=0, format="tflite")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnxscript: pip install 'spadnet\[onnx\]'"):
        export_model(vit(), tmp_path / "x.onnx", degree=0)
    assert not list(tmp_path.iterdir())


def test_foreign_file_is_named(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="spadnet did not write this file"):
        read_metadata(tmp_path / "foreign.onnx")
