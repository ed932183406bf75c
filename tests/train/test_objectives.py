"""Each objective learns what its trivial predictor cannot know, on images that it has not seen."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spadnet.data.batch import Batch
from spadnet.data.crop_plan import crop_size
from spadnet.losses.mim import constant_baseline
from spadnet.losses.pixels import pixel_loss
from spadnet.losses.prototypes import prototype_loss
from spadnet.models.dense import UNetDenseFeatures, VitDenseFeatures, coarse_labels
from spadnet.models.mae import MaskedAutoencoder
from spadnet.models.mim import MaskedImageModel
from spadnet.models.quantizer import SoftQuantizer
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import MAX_DEGREE, depth_stride
from spadnet.train.datamodule import StepDataModule
from spadnet.train.objectives import (
    Draw,
    PixelObjective,
    PrototypeObjective,
    TokenObjective,
)
from spadnet.train.optim import OptimSettings
from spadnet.train.pretrain_task import Part, PretrainTask
from spadnet.train.run import fit
from spadnet.train.synthetic import labelled_images

HELD_OUT = 1_000_000
NUM_LABELS = 16


def tiles(seed: int, batch: int) -> Tensor:
    """Images of equal patches: any patch tells how all others look, [B, 1, 1, 64, 64]."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(16) * (torch.pi / 8)
    rows, columns = torch.meshgrid(angle, angle, indexing="ij")
    waves = torch.stack((rows.sin(), rows.cos(), columns.sin(), columns.cos()))
    patch = torch.einsum("bn,nyx->byx", torch.randn(batch, 4, generator=generator), waves)
    return (0.5 + 0.1 * patch).clamp(0, 1).repeat(1, 4, 4)[:, None, None]


class Tiles(Dataset[list[Batch]]):
    """Steps of images of equal patches."""

    def __getitem__(self, step: int) -> list[Batch]:
        return [Batch(tiles(step, 16), 5, torch.ones(16, 3), [f"{step}-{i}" for i in range(16)])]


class Anatomies(Dataset[list[Batch]]):
    """Steps of labelled synthetic images."""

    def __init__(self, size: int, batch: int) -> None:
        self.size, self.batch = size, batch

    def __getitem__(self, step: int) -> list[Batch]:
        seeds = range(step * self.batch, (step + 1) * self.batch)
        made = labelled_images(seeds, (1, self.size, self.size), degree=5)
        keys = [str(seed) for seed in seeds]
        views = {"labels": made.labels, "other_view": made.other_view}
        return [Batch(made.image, 5, made.spacing, keys, **views)]


def tiny_vit() -> SpadViT:
    """A ViT of a few thousand parameters."""
    return SpadViT(in_chans=1, embed_dim=32, depth=2, num_heads=1, pos_grid=(1, 4, 4))


def tokens() -> Part:
    """Stage 2; the codes of the tokenizer are its latents of eight patches."""
    tokenizer = Tokenizer(in_chans=1, widths=(8, 8, 16), codebook_size=8, norm_latent=True)
    with torch.no_grad():
        latents = tokenizer.quantizer.norm(tokenizer.encode(tiles(0, 8), 5).movedim(1, -1))
    assert isinstance(tokenizer.quantizer, SoftQuantizer)
    tokenizer.quantizer.start_from(latents[:, 0, 0, 0], temperature=0.05)
    model = MaskedImageModel(tiny_vit(), codebook_size=8, num_mask_layers=1)
    return Part(model, TokenObjective(model, tokenizer))


def pixels() -> Part:
    """Masked autoencoder."""
    model = MaskedAutoencoder(tiny_vit(), decoder_dim=32, decoder_depth=1, head_dim=32)
    return Part(model, PixelObjective())


def vit_anatomy() -> Part:
    """Prototypes of a ViT's dense features."""
    model = VitDenseFeatures(tiny_vit(), num_features=16, width=16)
    return Part(model, PrototypeObjective(num_labels=NUM_LABELS))


def unet_anatomy() -> Part:
    """Prototypes of a U-Net's finest features."""
    unet = SpadUNet(in_chans=1, num_classes=1, features=(8, 16, 16), num_convs=1)
    return Part(UNetDenseFeatures(unet, num_features=8), PrototypeObjective(num_labels=NUM_LABELS))


def held_out(data: Dataset[list[Batch]]) -> list[Batch]:
    """Micro-batches that no training sees."""
    return [micro for step in range(4) for micro in data[HELD_OUT + step]]


def best_constant(part: Part, images: Sequence[Batch]) -> Tensor:
    """Cross-entropy of the mean distribution over the codes of these very images."""
    objective = part.objective
    assert isinstance(objective, TokenObjective)
    with torch.no_grad():
        targets = [objective.target(micro.image, micro.degree) for micro in images]
    return constant_baseline([target.softmax(-1) for target in targets])


def patch_mean(part: Part, images: Sequence[Batch]) -> Tensor:
    """Error of the mean of each patch, which is all that its own scale leaves unsaid."""
    model = part.model
    assert isinstance(model, MaskedAutoencoder)
    patchify = model.vit.patch_embed.patchify
    patches = torch.cat([patchify(micro.image, micro.degree) for micro in images])
    return pixel_loss(torch.zeros_like(patches), patches)


def same_everywhere(part: Part, images: Sequence[Batch]) -> Tensor:
    """Loss of features that are the same everywhere."""
    losses = []
    for micro in images:
        assert micro.labels is not None
        stride = part.model.stride
        assert isinstance(stride, int)
        labels = coarse_labels(micro.labels, stride=stride, degree=micro.degree)
        features = torch.ones(len(labels), 2, *labels.shape[1:])
        losses.append(prototype_loss(features, labels, num_labels=NUM_LABELS))
    return torch.stack(losses).mean()


def mean_loss(part: Part, images: Sequence[Batch]) -> Tensor:
    """Loss of a model, with masks of their own."""
    part.model.eval()
    draw = Draw(torch.Generator().manual_seed(HELD_OUT))
    with torch.no_grad():
        losses = [part.objective.losses(part.model, micro, draw).mean() for micro in images]
    part.model.train()
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("build", "data", "steps", "lr", "trivial", "share"),
    [
        (tokens, Tiles(), 150, 3e-3, best_constant, 0.96),
        (pixels, Tiles(), 60, 3e-3, patch_mean, 0.5),
        (vit_anatomy, Anatomies(32, 8), 70, 1e-2, same_everywhere, 0.9),
        (unet_anatomy, Anatomies(32, 8), 30, 1e-2, same_everywhere, 0.9),
    ],
)
def test_held_out_loss_falls_below_the_trivial_predictor(
    build: Callable[[], Part],
    data: Dataset[list[Batch]],
    steps: int,
    lr: float,
    trivial: Callable[[Part, Sequence[Batch]], Tensor],
    share: float,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    part, images = build(), held_out(data)
    limit = share * trivial(part, images)
    assert mean_loss(part, images) > limit
    optim = OptimSettings(lr=lr, warmup_steps=5, clip=1.0)
    task = PretrainTask({"only": part}, max_steps=steps, optim=optim)
    module = StepDataModule(data, max_steps=steps)
    fit(task, module, tmp_path, accelerator="cpu", precision="32-true", tensorboard=False)
    after = mean_loss(part, images)
    assert after < limit, f"{after:.3f} of a trivial {limit / share:.3f}"


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
@pytest.mark.parametrize("stride", [1, 4])
def test_coarse_labels_are_those_of_the_cells_of_the_features(degree: int, stride: int) -> None:
    cells = torch.randint(5, (2, 2, 3, 4), dtype=torch.uint8)
    depth = depth_stride(stride, degree)
    labels = cells.repeat_interleave(depth, 1)
    labels = labels.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
    assert torch.equal(coarse_labels(labels, stride=stride, degree=degree), cells)


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
@pytest.mark.parametrize("build", [vit_anatomy, unet_anatomy])
def test_two_equal_views_are_one_at_every_degree(build: Callable[[], Part], degree: int) -> None:
    torch.manual_seed(0)
    part, draw = build(), Draw(torch.Generator())
    made = labelled_images([1, 2], crop_size(degree, (2, 2, 2)), degree=degree, severities=None)
    one = Batch(made.image, degree, made.spacing, ["1", "2"], labels=made.labels)
    two = one._replace(other_view=made.image)
    losses = [part.objective.losses(part.model, micro, draw) for micro in (one, two)]
    torch.testing.assert_close(losses[0], losses[1])
    assert 0 < losses[0] < torch.inf
