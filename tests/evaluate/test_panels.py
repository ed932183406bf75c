"""Laws of the pictures: the mask hides, perfect predictions reconstruct, pixels are square."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spadnet.evaluate.held_out import HeldOut, block_means, token_grid
from spadnet.evaluate.panels import MASK_GREY, Views, masked_views, panels
from spadnet.models.mim import MaskedImageModel, MimOutput, complement_index, gather_tokens
from spadnet.models.quantizer import QuantizerKind
from spadnet.models.tokenizer import Tokenizer
from spadnet.spacing import Spacing


class Oracle(nn.Module):
    """Stands in for a model: predicts the target, and looks at what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1))
        self.vit = SimpleNamespace(in_chans=1)

    def forward(self, x: Tensor, visible_index: Tensor, target: Tensor, degree: int) -> MimOutput:
        masked = complement_index(visible_index, target.shape[1])
        target = gather_tokens(target, masked)
        return MimOutput(target, target, masked)


def view(model: nn.Module, tokenizer: Tokenizer, image: HeldOut, ratio: float = 0.55) -> Views:
    return masked_views(
        cast(MaskedImageModel, model),
        tokenizer,
        image,
        window=(2, 3, 3),
        mask_ratio=ratio,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("place", range(3))
def test_a_model_that_knows_the_codes_predicts_the_reconstruction(
    place: int, images: list[HeldOut], tokenizer: Tokenizer
) -> None:
    views = view(Oracle(), tokenizer, images[place])
    assert torch.allclose(views.prediction, views.reconstruction, atol=1e-5)


def test_codes_of_visible_tokens_are_the_tokenizers_own(
    images: list[HeldOut], tokenizer: Tokenizer, model: MaskedImageModel
) -> None:
    seen: list[Tensor] = []
    handle = tokenizer.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    views = view(model, tokenizer, images[0])
    handle.remove()
    own, mixed = seen
    grid = token_grid(images[0].image, 5)
    is_hidden = (block_means(views.masked, 5) == MASK_GREY)[0, 0, :, ::16, ::16]
    assert is_hidden.shape == grid
    assert is_hidden.sum() == grid[1] * grid[2] - int(0.45 * grid[1] * grid[2])
    changed = ((own - mixed).abs() > 1e-6).any(1)[0]
    assert torch.equal(changed, is_hidden)


@pytest.mark.parametrize("kind", ["soft", "gumbel", "nearest"])
def test_every_quantizer_can_be_pictured(kind: QuantizerKind, images: list[HeldOut]) -> None:
    tokenizer = Tokenizer(in_chans=1, widths=(8, 8, 8), codebook_size=8, quantizer=kind)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    views = view(Oracle(), tokenizer, images[1], ratio=0.1)
    for part in views:
        assert part.shape == images[1].image.shape
    assert tokenizer.training
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, before[name])


def test_masked_view_shows_the_image_or_grey(
    images: list[HeldOut], tokenizer: Tokenizer, model: MaskedImageModel
) -> None:
    views = view(model, tokenizer, images[1])
    hidden = views.masked == MASK_GREY
    assert torch.equal(views.masked[~hidden], images[1].image[~hidden])
    assert 0 < hidden.float().mean() < 1


def test_planes_follow_the_depth_and_have_square_pixels(
    tokenizer: Tokenizer, model: MaskedImageModel
) -> None:
    flat = HeldOut("flat", torch.rand(1, 1, 1, 32, 48), Spacing.planar(0.5, 0.25), 5)
    thin = HeldOut("thin", torch.rand(1, 1, 4, 32, 32), Spacing(4, 1, 1), 2)
    thick = HeldOut("thick", torch.rand(1, 1, 8, 32, 48), Spacing(5, 1, 1), 2, "MR")
    made = panels(model, tokenizer, [flat, thin, thick], window=(2, 2, 2), mask_ratio=0.5)
    assert [(panel.name, panel.plane) for panel in made] == [
        ("flat", "2D image"),
        ("thin", "axial slice"),
        ("thick", "axial slice"),
        ("thick", "coronal slice"),
    ]
    assert [panel.original.shape for panel in made] == [(64, 48), (32, 32), (32, 48), (40, 48)]
    for panel in made:
        for array in (panel.original, panel.reconstruction, panel.masked, panel.prediction):
            assert array.dtype == np.uint8
            assert array.shape == panel.original.shape
    coronal = thick.image[0, 0, :, 16].flip(0).repeat_interleave(5, 0)
    assert np.array_equal(made[-1].original, (coronal * 255).round().numpy().astype(np.uint8))


def test_colour_images_stay_coloured() -> None:
    tokenizer = Tokenizer(in_chans=3, widths=(8, 8, 8), codebook_size=8)
    image = HeldOut("fundus", torch.rand(1, 3, 1, 32, 32), Spacing.planar(), 5)
    (panel,) = panels(
        cast(MaskedImageModel, Oracle()), tokenizer, [image], window=(1, 2, 2), mask_ratio=0.5
    )
    assert panel.prediction.shape == (32, 32, 3)
