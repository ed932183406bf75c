"""The SPAD-UNet keeps the contract and is, at each spacing, the plain U-Net planned for it."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from contract import ModelContract
from torch import Tensor, nn

from spadnet.inference.specialise import specialise
from spadnet.layers.spad_conv import fold_depth
from spadnet.models.registry import create_model
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.unet_parts import Stage
from spadnet.spacing import MAX_DEGREE, Spacing, depth_stride, required_multiple
from spadnet.weights.hub import create_model as create_pretrained
from spadnet.weights.hub import load_checkpoint, load_vit, save_pretrained

DEGREES = range(MAX_DEGREE + 1)
FEATURES = (4, 6, 8, 10, 12)


def unet(**arguments: object) -> SpadUNet:
    """A narrow U-Net whose norms are not the identity."""
    model = SpadUNet(**{"features": FEATURES, "num_classes": 3, **arguments}).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.GroupNorm)):
        nn.init.normal_(norm.weight, mean=1, std=0.3)
        nn.init.normal_(norm.bias, std=0.3)
    return model


def volume(degree: int, *, grid: Sequence[int] = (2, 2, 3), stride: int = 16) -> Tensor:
    steps = required_multiple(degree, stride=stride)
    return torch.rand(2, 1, *(n * step for n, step in zip(grid, steps, strict=True)))


class TestSpadUNet(ModelContract):
    def build(self) -> nn.Module:
        return unet()

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [(batch, 3, *self.volume(degree, batch=batch, grid=grid).shape[2:])]


class TestDeepSupervision(ModelContract):
    def build(self) -> nn.Module:
        return unet(deep_supervision=True, num_convs=(1, 2, 3, 1, 2), num_convs_decoder=1)

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        depth, height, width = self.volume(degree, batch=batch, grid=grid).shape[2:]
        return [
            (batch, 3, depth // depth_stride(s, degree), height // s, width // s)
            for s in (1, 2, 4, 8)
        ]


# --- laws ---


def plain_stage(stage: nn.Module, x: Tensor, kernel: int, stride: Tensor) -> Tensor:
    """A level of a plain U-Net with (``kernel``, 3, 3) kernels; only its first conv strides."""
    assert isinstance(stage, Stage)
    for i, block in enumerate(stage.blocks):
        weight = block.conv.weight
        # At the level where depth is halved for the first time, the strided kernel still is flat.
        depth = 1 if kernel == 1 or (i == 0 and stride[0] < stride[1]) else 3
        weight = weight.sum(2, keepdim=True) if depth == 1 else weight
        steps = [int(s) for s in stride] if i == 0 else 1
        x = F.conv3d(x, weight, stride=steps, padding=(depth // 2, 1, 1))
        x = F.instance_norm(x, weight=block.norm.weight, bias=block.norm.bias)
        x = F.leaky_relu(x, 0.01)
    return x


def plain_unet(model: SpadUNet, x: Tensor, spacing: Spacing) -> list[Tensor]:
    """The U-Net of nnU-Net's rule, with plain convolutions and folded kernels.

    An axis is halved, and has kernels of 3, once its voxels are less than twice as large as the
    smallest ones.
    """
    now, strides, kernels = torch.tensor(spacing), [torch.ones(3)], []
    for _ in range(len(model.features) - 1):
        alike = now / now.min() < 2
        kernels.append(3 if alike[0] else 1)
        strides.append(1.0 + alike)
        now = now * strides[-1]
    kernels.append(3 if now[0] / now.min() < 2 else 1)
    maps = []
    for stage, kernel, stride in zip(model.encoder.stages, kernels, strides, strict=True):
        maps.append(x := plain_stage(stage, x, kernel, stride))
    logits = []
    for level in reversed(range(len(model.decoder.stages))):
        up = model.decoder.ups[level]
        stride = strides[level + 1]
        weight = up.weight if stride[0] == 2 else up.weight.mean(2, keepdim=True)
        x = F.conv_transpose3d(x, weight, up.bias, stride=[int(s) for s in stride])
        x = torch.cat((x, maps[level]), dim=1)
        x = plain_stage(model.decoder.stages[level], x, kernels[level], torch.ones(3))
        logits.insert(0, model.decoder.heads[level](x))
    return logits


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 1, 1), (1.9, 1, 1), (1.3, 1.0, 1.1)])
def test_is_the_plain_isotropic_unet_at_degree_0(spacing: tuple[float, float, float]) -> None:
    model, x = unet(deep_supervision=True).double(), volume(0).double()
    degree = Spacing(*spacing).degree()
    assert degree == 0
    with torch.no_grad():
        expected = plain_unet(model, x, Spacing(1, 1, 1))
        torch.testing.assert_close(model(x, degree), expected)


@pytest.mark.parametrize("z", [2.0, 3.0, 5.0, 9.0, 20.0, 1e8])
def test_is_the_plain_anisotropic_unet_on_thick_slices(z: float) -> None:
    model, spacing = unet(deep_supervision=True).double(), Spacing(z, 1, 1)
    x = volume(spacing.degree()).double()
    with torch.no_grad():
        expected = plain_unet(model, x, spacing)
        torch.testing.assert_close(model(x, spacing.degree()), expected)


def test_is_a_2d_unet_on_pictures() -> None:
    model, x = unet(), torch.rand(2, 1, 32, 48)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 3, 32, 48)
        torch.testing.assert_close(logits, model(x.unsqueeze(2), MAX_DEGREE).squeeze(2))
    deep = unet(deep_supervision=True)
    assert [y.shape[2:] for y in deep(x)] == [(32, 48), (16, 24), (8, 12), (4, 6)]


def test_slices_of_a_stack_share_no_convolution_at_the_largest_degree() -> None:
    """Only the norms look across slices: each convolution's response stays in its slice."""
    model, x = unet(), volume(MAX_DEGREE, grid=(3, 2, 2))
    first = model.encoder.stages[0].blocks[0].conv
    changed = x.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        before, after = first(x, MAX_DEGREE), first(changed, MAX_DEGREE)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2], after[:, :, 2])


def test_folded_kernels_start_with_the_variance_of_he() -> None:
    conv = SpadUNet(features=(32, 64)).encoder.stages[1].blocks[0].conv
    for degree, fan_in in ((0, 27 * 32), (1, 9 * 32)):
        folded = fold_depth(conv.weight, stride=2, degree=degree)
        assert folded.var().item() * fan_in == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("degree", DEGREES)
def test_specialised_it_is_plain_and_the_same(degree: int) -> None:
    model, x = unet(deep_supervision=True), volume(degree)
    net = specialise(model, degree)
    with torch.no_grad():
        for ours, theirs in zip(net(x), model(x, degree), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    shapes = {tuple(m.kernel_size) for m in net.modules() if isinstance(m, nn.Conv3d)}
    assert ((1, 3, 3) in shapes) == (degree > 0)
    assert ((3, 3, 3) in shapes) == (degree < 5)


# --- sizes, heads, bad input ---


@pytest.mark.parametrize("name", ["spad_unet_tiny", "spad_unet_small", "spad_unet_base"])
def test_sizes_are_registered(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, in_chans=2, num_classes=4, deep_supervision=True)
        logits = model(torch.zeros(1, 2, 4, 32, 32), 2)
    assert isinstance(model, SpadUNet)
    assert logits[0].shape == (1, 4, 4, 32, 32)


def test_new_heads_for_other_classes() -> None:
    model = unet(deep_supervision=True)
    model.reset_classifier(7)
    assert [y.shape[1] for y in model(volume(1), 1)] == [7, 7, 7, 7]
    assert model.config()["num_classes"] == model.get_classifier().out_channels == 7


def test_idle_heads_are_frozen() -> None:
    model = unet()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"decoder.heads.{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")}
    assert all(p.requires_grad for p in unet(deep_supervision=True).parameters())


def test_every_level_has_its_layer_group() -> None:
    ((pattern, _),) = unet().group_matcher()["blocks"]
    found = {m[1] for name, _ in unet().named_parameters() if (m := re.match(pattern, name))}
    assert found == {str(level) for level, _ in enumerate(FEATURES)}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"features": (8,)}, "two levels"),
        ({"num_convs": (2, 2)}, "5 levels need"),
        ({"num_convs_decoder": 0}, "4 levels need"),
    ],
)
def test_refuses_impossible_arguments(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        unet(**arguments)


@pytest.mark.parametrize(
    ("shape", "degree", "reason"),
    [
        ((1, 1, 3, 32, 32), 2, r"\(3, 32, 32\) is not a multiple of \(4, 16, 16\)"),
        ((1, 2, 4, 32, 32), 2, r"takes \[B, 1, D, H, W\]"),
        ((1, 1, 4, 32, 32), None, "needs a degree"),
    ],
)
def test_refuses_what_does_not_fit(shape: tuple[int, ...], degree: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        unet()(torch.zeros(shape), degree)


# --- checkpoint folders ---


def test_survives_a_checkpoint_folder(tmp_path: Path) -> None:
    model = unet(deep_supervision=True)
    save_pretrained(model, tmp_path / "unet", training={"data": ["made up"]})
    loaded = load_checkpoint(tmp_path / "unet")
    assert loaded.contract.stride == 16
    assert not loaded.report.missing
    x = volume(2)
    with torch.no_grad():
        for ours, theirs in zip(loaded.model(x, 2), model(x, 2), strict=True):
            assert torch.equal(ours, theirs)
    assert "U-Net" in (tmp_path / "unet" / "README.md").read_text()


def test_heads_and_channels_change_on_request(tmp_path: Path) -> None:
    folder, x = tmp_path / "unet", volume(2)
    model = create_model("spad_unet_tiny", num_classes=3).eval()
    save_pretrained(model, folder, name="spad_unet_tiny")
    other = create_pretrained("spad_unet_tiny", pretrained=folder, in_chans=2, num_classes=5)
    with torch.no_grad():
        ours = other.forward_features(x.expand(-1, 2, -1, -1, -1), 2)
        theirs = model.forward_features(x, 2)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    assert other.get_classifier().out_channels == 5


def test_is_not_taken_for_an_encoder_of_tokens(tmp_path: Path) -> None:
    save_pretrained(unet(), tmp_path / "unet")
    with pytest.raises(ValueError, match=r"holds a SpadUNet, not a SpadViT; .*load_pretrained"):
        load_vit(tmp_path / "unet")


def test_levels_are_named_for_every_width() -> None:
    assert [info["num_chs"] for info in unet().feature_info] == list(FEATURES)
    assert [b // a for a, b in pairwise(i["reduction"] for i in unet().feature_info)] == [2] * 4
