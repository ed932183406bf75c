"""Choice of a perceptual loss by name, LPIPS on VGG16 against a direct computation, and slices."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from spadnet.losses.lpips import convert_lpips_weights, load_lpips_vgg16
from spadnet.losses.multiscale import MultiscalePerceptual
from spadnet.losses.perceptual import SlicePerceptual, build_perceptual, choose_slices

# torchvision's vgg16().features: index and width of each convolution.
CONVS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
CONVS |= {17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
LAST_OF_BLOCK = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    """Random VGG16 features in torchvision's layout."""
    generator = torch.Generator().manual_seed(0)
    weights, in_channels = {}, 3
    for index, width in CONVS.items():
        shape = (width, in_channels, 3, 3)
        scale = (2 / (9 * in_channels)) ** 0.5
        weights[f"features.{index}.weight"] = scale * torch.randn(shape, generator=generator)
        weights[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
        in_channels = width
    return weights


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    """Random heads in the layout of the LPIPS release."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{n}.model.1.weight": torch.rand(1, CONVS[index], 1, 1, generator=generator)
        for n, index in enumerate(LAST_OF_BLOCK)
    }


@pytest.fixture(scope="module")
def weights(
    vgg: dict[str, Tensor], heads: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A file with all of them."""
    path = tmp_path_factory.mktemp("lpips") / "lpips_vgg16.safetensors"
    save_file(vgg | heads, path)
    return path


def direct_lpips(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """LPIPS as its authors define it, for input in [-1, 1]: the ImageNet mean m becomes 2m - 1."""
    mean = 2 * torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) - 1
    std = 2 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x, y = (x - mean) / std, (y - mean) / std
    total = torch.zeros(x.shape[0])
    for index in CONVS:
        kernel, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
        x, y = (F.conv2d(v, kernel, bias, padding=1).relu() for v in (x, y))
        if index in LAST_OF_BLOCK:
            head = weights[f"lin{LAST_OF_BLOCK.index(index)}.model.1.weight"][0]
            squared = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
            total += (head * squared).sum(1).mean((1, 2))
            if index != LAST_OF_BLOCK[-1]:
                x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
    return total


def test_lpips_equals_the_direct_computation(
    weights: Path, vgg: dict[str, Tensor], heads: dict[str, Tensor]
) -> None:
    loss = build_perceptual("lpips-vgg16", weights)
    x, y = torch.rand(1, 3, 2, 32, 24), torch.rand(1, 3, 2, 32, 24)
    slices = [v[0].movedim(1, 0) for v in (x, y)]
    expected = direct_lpips(vgg | heads, *(2 * v - 1 for v in slices)).mean()
    assert torch.allclose(loss(x, y, degree=3), expected, rtol=1e-4)

    # One channel is repeated to three; several that are not RGB are images of their own.
    grey, target = x[:, :2], y[:, :2]
    images = [v[0].reshape(4, 1, 32, 24).repeat(1, 3, 1, 1) for v in (grey, target)]
    expected = direct_lpips(vgg | heads, *(2 * v - 1 for v in images)).mean()
    assert torch.allclose(loss(grey, target, degree=3), expected, rtol=1e-4)


def test_lpips_is_zero_for_identical_images_and_grows_with_blur(weights: Path) -> None:
    loss = build_perceptual("lpips-vgg16", weights)
    y = torch.rand(1, 1, 1, 32, 32)
    x = [F.avg_pool3d(y, (1, k, k), 1, (0, k // 2, k // 2)) for k in (1, 3, 9)]
    values = [loss(v, y, degree=5).item() for v in x]
    assert values[0] == 0
    assert 0 < values[1] < values[2]


def test_lpips_gives_finite_gradients_to_the_reconstruction_only(weights: Path) -> None:
    loss = build_perceptual("lpips-vgg16", weights)
    y = torch.rand(1, 1, 1, 16, 16, requires_grad=True)
    x = y.detach().clone().requires_grad_()
    loss(x, y, degree=5).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()  # even where all differences are zero
    loss(x + 0.1 * torch.randn_like(x), y, degree=5).backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None


def test_lpips_leaves_no_trace_in_a_checkpoint(weights: Path) -> None:
    loss = build_perceptual("lpips-vgg16", weights)
    assert isinstance(loss, SlicePerceptual)
    assert not list(loss.state_dict())
    assert not list(loss.parameters())
    loss.train()
    assert not loss.network.training
    loss.to(torch.float64)
    assert {p.dtype for p in loss.network.parameters()} == {torch.float64}


def test_lpips_refuses_tiny_images(weights: Path) -> None:
    loss = build_perceptual("lpips-vgg16", weights)
    with pytest.raises(ValueError, match=r"at least 16 pixels, got \(8, 32\)"):
        loss(torch.rand(1, 1, 1, 8, 32), torch.rand(1, 1, 1, 8, 32), degree=5)


def test_lpips_layouts_mean_the_same(vgg: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
    plain = vgg | heads
    classifier = {"classifier.0.weight": torch.zeros(1)}
    block = {index: sum(index > last for last in LAST_OF_BLOCK) + 1 for index in CONVS}
    package = {
        name.replace("features.", f"net.slice{block[int(name.split('.')[1])]}."): value
        for name, value in vgg.items()
    }
    package |= heads | {f"lins.{n}.model.1.weight": v for n, v in enumerate(heads.values())}
    package |= {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for layout in (plain, plain | classifier, package):
        converted = convert_lpips_weights(layout)
        assert converted.keys() == plain.keys()
        assert all(converted[name] is plain[name] for name in plain)


def test_lpips_weights_may_lie_in_two_files_of_a_folder(
    vgg: dict[str, Tensor], heads: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(vgg, tmp_path / "vgg16.safetensors")
    torch.save(heads, tmp_path / "vgg.pth")
    (tmp_path / "LICENSE").write_text("not weights")
    network = load_lpips_vgg16(tmp_path)
    assert torch.equal(network.features[28].weight, vgg["features.28.weight"])


def test_lpips_says_what_is_wrong_with_weights(
    vgg: dict[str, Tensor], heads: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"absent\.pth: no such file"):
        build_perceptual("lpips-vgg16", tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="needs a path"):
        build_perceptual("lpips-vgg16")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(ValueError, match=f"{name}: cannot be read") as caught:
            build_perceptual("lpips-vgg16", tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save([1.0], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth: does not hold tensors"):
        build_perceptual("lpips-vgg16", tmp_path / "list.pth")
    torch.save(heads, tmp_path / "heads.pth")
    with pytest.raises(ValueError, match=r"heads\.pth: .* missing features\.0\.weight"):
        build_perceptual("lpips-vgg16", tmp_path / "heads.pth")
    with pytest.raises(ValueError, match=r"unknown fc\.weight"):
        convert_lpips_weights(vgg | heads | {"fc.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"features\.0\.bias has shape"):
        convert_lpips_weights(vgg | heads | {"features.0.bias": torch.zeros(1)})


class Counter(nn.Module):
    """A 2D network that takes note of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append(x)
        return (x - y).abs().mean((1, 2, 3))


def test_networks_see_at_most_max_slices_chosen_by_the_generator() -> None:
    network = Counter()
    loss = SlicePerceptual(network)
    x = torch.arange(64.0).view(2, 1, 32, 1, 1).expand(-1, -1, -1, 16, 16)
    for seed in (0, 0, 1):
        loss(x, x, degree=0, generator=torch.Generator().manual_seed(seed))
    first, again, other = ([int(v) for v in seen[:, 0, 0, 0]] for seen in network.seen)
    assert len(set(first)) == 24
    assert first == again
    assert sorted(first) != sorted(other)
    assert network.seen[0].shape == (24, 3, 16, 16)

    few = x[:1, :, :5]
    loss(few, few, degree=0, generator=torch.Generator().manual_seed(0))
    assert network.seen[-1][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_slices_without_a_generator_are_spread_evenly() -> None:
    assert choose_slices(10, 4, generator=None).tolist() == [0, 2, 5, 7]
    assert choose_slices(3, 4, generator=None).tolist() == [0, 1, 2]


def test_reconstruction_and_target_are_never_written_to() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x.mul_(2) - y.mul_(3)).abs()

    loss = SlicePerceptual(InPlace())
    for channels in (1, 3):
        x = torch.rand(1, channels, 1, 16, 16)
        y = x.clone()
        loss(x, x, degree=5)
        assert torch.equal(x, y)


def test_default_needs_no_weights() -> None:
    assert isinstance(build_perceptual(), MultiscalePerceptual)
    with pytest.raises(ValueError, match="takes no weights"):
        build_perceptual("multiscale", "somewhere")
    with pytest.raises(ValueError, match=r"one of .*multiscale.* got 'vgg'"):
        build_perceptual("vgg")


def test_monai_names_the_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hubconf\.py: missing") as caught:
        build_perceptual("monai", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match=r"r50\.pth: missing"):
        build_perceptual("monai-resnet50", tmp_path / "r50.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: not the weights of a ResNet50") as caught:
        build_perceptual("monai-resnet50", tmp_path / "other.pth")
    assert "\n" not in str(caught.value)


def test_monai_runs_from_a_local_hub_folder(tmp_path: Path) -> None:
    repository = tmp_path / "Project-MONAI_perceptual-models_main"
    repository.mkdir()
    (repository / "hubconf.py").write_text(
        "import os, torch\n"
        "def radimagenet_resnet50(cache_dir=None):\n"
        "    network = torch.nn.Conv2d(3, 4, 3)\n"
        "    file = os.path.join(torch.hub.get_dir(), 'RadImageNet-ResNet50_notop.pth')\n"
        "    network.load_state_dict(torch.load(file, weights_only=True))\n"
        "    return network\n"
    )
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "RadImageNet-ResNet50_notop.pth")
    before = torch.hub.get_dir()
    loss = build_perceptual("monai", tmp_path)
    assert torch.hub.get_dir() == before
    y = torch.rand(1, 1, 1, 16, 16)
    x = torch.rand_like(y).requires_grad_()
    assert loss(y, y, degree=5).item() == 0
    distance = loss(x, y, degree=5)
    distance.backward()
    assert distance.item() > 0
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
