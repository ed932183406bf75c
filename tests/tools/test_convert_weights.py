"""The tool converts each kind of weights into a folder that loads and computes the same."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from released import released_mim, released_tokenizer, released_vit
from safetensors.torch import save_file
from torch import Tensor, nn
from vqgan_2d import Vqgan

from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.golden import check_golden
from spadnet.weights.hub import load_checkpoint

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_weights.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_weights", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vit() -> SpadViT:
    return SpadViT(embed_dim=128, depth=2, num_heads=2, pos_grid=(1, 2, 2))


def mim() -> MaskedImageModel:
    return MaskedImageModel(vit(), codebook_size=6, num_mask_layers=2)


def tokenizer() -> Tokenizer:
    return Tokenizer(
        widths=(8, 16, 24), decoder_widths=(8, 8, 16), codebook_size=6, code_dim=4, reduction="sum"
    )


RELEASED: dict[str, tuple[Callable[[], nn.Module], Callable[..., dict[str, Tensor]], list[str]]] = {
    "released-tokenizer": (tokenizer, released_tokenizer, []),
    "released-vit": (vit, released_vit, []),
    "released-mim": (mim, released_mim, ["--num-mask-layers", "2"]),
}


@pytest.mark.parametrize("kind", RELEASED)
def test_released_weights(kind: str, tool: ModuleType, tmp_path: Path) -> None:
    build, release, options = RELEASED[kind]
    model = build()
    torch.save({"model": release(model.state_dict())}, tmp_path / "weights.pt")
    arguments = [kind, str(tmp_path / "weights.pt"), str(tmp_path / "out"), "--licence", "MIT"]
    assert tool.main([*arguments, "--data", "IXI", *options]) == 0
    loaded = load_checkpoint(tmp_path / "out")
    assert type(loaded.model) is type(model)
    assert getattr(loaded.model, "num_mask_layers", 2) == 2
    assert getattr(loaded.model, "reduction", "sum") == "sum"
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert loaded.config["licence"] == "MIT"
    assert loaded.config["training"] == {"data": ["IXI"], "converted_from": kind}
    check_golden(loaded.model, loaded.folder / "golden.safetensors")


def test_timm_weights_take_intensities(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = timm.create_model

    def shallow(name: str, **arguments: object) -> nn.Module:
        return build(name, depth=1, **arguments)

    monkeypatch.setattr(timm, "create_model", shallow)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    arguments = ["timm", str(tmp_path / "weights.safetensors"), str(tmp_path / "out")]
    assert tool.main([*arguments, "--licence", "MIT", "--model", "vit_tiny_patch16_224"]) == 0
    loaded = load_checkpoint(tmp_path / "out")
    x = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(source.pretrained_cfg[k]).view(-1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        difference = loaded.model(x) - source((x - mean) / std)
    assert difference.abs().max() <= 1e-4


def test_vqgan_weights(tool: ModuleType, tmp_path: Path) -> None:
    torch.save({"state_dict": Vqgan().state_dict()}, tmp_path / "last.ckpt")
    arguments = ["vqgan", str(tmp_path / "last.ckpt"), str(tmp_path / "out"), "--licence", "MIT"]
    assert tool.main(arguments) == 0
    assert isinstance(load_checkpoint(tmp_path / "out").model, Tokenizer)


class Evil:
    """An object whose pickle would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "argv", "message"),
    [
        (None, ["vqgan"], "weights.pt: no such file"),
        (b"hello", ["vqgan"], "weights.pt: not a file of weights"),
        ({"a": Evil()}, ["vqgan"], "holds more than plain types and tensors"),
        ({"a": 3}, ["vqgan"], "weights.pt: not a file of weights"),
        (
            {"a": torch.zeros(1)},
            ["vqgan"],
            "not a VQGAN with nearest codes, missing weights: quant",
        ),
        ({"cls_token": torch.zeros(1)}, ["released-vit"], "missing weights: patch_embed.proj"),
        ({"a": torch.zeros(1)}, ["released-mim"], "needs --num-mask-layers"),
        ({"a": torch.zeros(1)}, ["timm"], "timm needs --model"),
        ({"a": torch.zeros(1)}, ["timm", "--model", "vit_tny"], "timm has no model 'vit_tny'"),
        (
            {"a": torch.zeros(1)},
            ["timm", "--model", "vit_tiny_patch16_224"],
            "not the weights of vit_tiny_patch16_224: Error(s) in loading",
        ),
    ],
)
def test_faults_are_one_line_and_nothing_is_written(
    content: object,
    argv: list[str],
    message: str,
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    kind, *options = argv
    arguments = [kind, str(file), str(tmp_path / "out"), "--licence", "MIT", *options]
    assert tool.main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "run" not in captured.out
    assert not (tmp_path / "out").exists()
