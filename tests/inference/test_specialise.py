"""A specialised network is an ordinary one and gives the output of the original."""

import pytest
import torch
from torch import Tensor, nn

from spadnet.inference.specialise import specialise
from spadnet.layers.spad_conv import SpadConv3d, SpadConvTranspose3d
from spadnet.models.pyramid import Pyramid
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import MAX_DEGREE, Spacing, required_multiple

DEGREES = range(MAX_DEGREE + 1)


def tokenizer(in_chans: int = 1) -> Tokenizer:
    return Tokenizer(in_chans=in_chans, widths=(8, 16), stem_stride=8, codebook_size=11).eval()


def vit(in_chans: int = 1) -> SpadViT:
    return SpadViT(
        in_chans=in_chans, num_classes=3, embed_dim=16, depth=4, num_heads=1, pos_grid=(2, 3, 3)
    ).eval()


def pyramid() -> Pyramid:
    return Pyramid(vit(), out_indices=(0, 1, 2, 3)).eval()


def volume(degree: int, *, stride: int = 32, in_chans: int = 1) -> Tensor:
    return torch.rand(2, in_chans, *required_multiple(degree, stride=stride))


def assert_same(actual: object, expected: object, *, tolerance: float = 1e-5) -> None:
    ours, theirs = (torch.utils._pytree.tree_leaves(output) for output in (actual, expected))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("build", [tokenizer, vit, pyramid])
def test_gives_the_same_output(build: type, degree: int) -> None:
    model, x = build(), volume(degree)
    with torch.no_grad():
        assert_same(specialise(model, degree)(x), model(x, degree))


@pytest.mark.parametrize("build", [tokenizer, vit, pyramid])
def test_has_plain_convolutions_only(build: type) -> None:
    net = specialise(build(), Spacing(5.0, 0.8, 0.8))
    assert net.degree == 2
    assert not [m for m in net.modules() if isinstance(m, SpadConv3d | SpadConvTranspose3d)]
    kernels = [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv3d)]
    assert any(kernel[0] < kernel[1] for kernel in kernels)


@pytest.mark.parametrize("degree", [0, 3])
def test_leaves_the_model_as_it_is(degree: int) -> None:
    model = tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    specialise(model, degree, grey=True, dtype=torch.bfloat16)
    assert_same(model.state_dict(), before, tolerance=0.0)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("build", [tokenizer, vit])
def test_grey_stands_for_all_channels(build: type, degree: int) -> None:
    model, x = build(in_chans=3), volume(degree)
    with torch.no_grad():
        colour = model(x.expand(-1, 3, -1, -1, -1), degree)
        assert_same(specialise(model, degree, grey=True)(x), colour, tolerance=1e-4)


def test_two_dimensional_images_pass() -> None:
    model, x = vit(), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert_same(specialise(model, Spacing.planar())(x), model(x))


@pytest.mark.parametrize("build", [tokenizer, vit])
def test_precision_is_chosen(build: type) -> None:
    model, x = build(), volume(1)
    net = specialise(model, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        output = torch.utils._pytree.tree_leaves(net(x))[0]
        expected = torch.utils._pytree.tree_leaves(model(x, 1))[0]
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).abs().mean() < 0.05 * expected.std()


def test_learns_on() -> None:
    net = specialise(vit().train(), 2)
    net(volume(2)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("degree", [-1, 6])
def test_refuses_an_impossible_degree(degree: int) -> None:
    with pytest.raises(ValueError, match=str(degree)):
        specialise(vit(), degree)


def test_refuses_a_network_without_spacing_aware_layers() -> None:
    with pytest.raises(ValueError, match="Linear"):
        specialise(nn.Linear(2, 2), 0)


def test_refuses_grey_where_the_first_layer_is_unknown() -> None:
    with pytest.raises(ValueError, match="Pyramid"):
        specialise(pyramid(), 0, grey=True)
