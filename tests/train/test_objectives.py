"""Each objective learns what its trivial predictor cannot know, on images that it has not seen."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spadnet.data.batch import Batch
from spadnet.losses.mim import constant_baseline
from spadnet.losses.pixels import pixel_loss
from spadnet.losses.prototypes import prototype_loss
from spadnet.models.dense import UNetDenseFeatures, VitDenseFeatures
from spadnet.models.mae import MaskedAutoencoder
from spadnet.models.mim import MaskedImageModel
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.train.datamodule import StepDataModule
from spadnet.train.objectives import (
    Draw,
    PixelObjective,
    PrototypeObjective,
    TokenObjective,
    coarse_labels,
)
from spadnet.train.optim import OptimSettings
from spadnet.train.pretrain_task import Part, PretrainTask
from spadnet.train.run import fit
from spadnet.train.synthetic import labelled_images

HELD_OUT = 1_000_000
NUM_LABELS = 16


def waves(seed: int, batch: int) -> Tensor:
    """Plane waves longer than a patch: any patch tells how all others look, [B, 1, 1, 64, 64]."""
    generator = torch.Generator().manual_seed(seed)
    angle, phase = torch.rand(2, batch, 1, 1, generator=generator) * 2 * torch.pi
    place = torch.arange(64.0) / 64
    along = angle.cos() * place[:, None] + angle.sin() * place
    return (0.5 + 0.4 * (2 * torch.pi * along + phase).sin())[:, None, None]


class Waves(Dataset[list[Batch]]):
    """Steps of plane waves."""

    def __getitem__(self, step: int) -> list[Batch]:
        return [Batch(waves(step, 16), 5, torch.ones(16, 3), [f"{step}-{i}" for i in range(16)])]


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
    """Stage 2 with the codes of a random tokenizer, made sharp: they still follow the patch."""
    tokenizer = Tokenizer(in_chans=1, widths=(8, 8, 16), codebook_size=8, norm_latent=True)
    with torch.no_grad():
        tokenizer.quantizer.proj.weight.mul_(10.0)
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
        losses = [part.objective.loss(part.model, micro, draw) for micro in images]
    part.model.train()
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("build", "data", "steps", "lr", "trivial", "share"),
    [
        (tokens, Waves(), 200, 3e-3, best_constant, 0.96),
        (pixels, Waves(), 100, 1e-2, patch_mean, 0.95),
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
