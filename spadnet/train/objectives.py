"""What a pre-training asks of a model: each objective turns a micro-batch into a loss.

An objective holds settings and what is frozen, but not the model it trains: several objectives may
train one encoder, each through a model of its own around it.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from spadnet.data.batch import Batch
from spadnet.data.masking import random_visible_index
from spadnet.losses.mim import position_cross_entropy
from spadnet.losses.pixels import pixel_errors
from spadnet.losses.prototypes import TEMPERATURE, prototype_loss
from spadnet.models.dense import UNetDenseFeatures, VitDenseFeatures, coarse_labels
from spadnet.models.frozen import FrozenTargets
from spadnet.models.mae import MaskedAutoencoder
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer


class Draw(NamedTuple):
    """Where the random numbers of a micro-batch come from.

    Attributes:
        generator: Alike on all ranks.
        rank: Of this process.
        world_size: Processes that share the draw.
    """

    generator: torch.Generator
    rank: int = 0
    world_size: int = 1

    def visible(self, batch: int, num_tokens: int, *, mask_ratio: float) -> Tensor:
        """Positions that each of this process's samples may see, [B, V]."""
        return random_visible_index(
            batch,
            num_tokens,
            mask_ratio=mask_ratio,
            generator=self.generator,
            rank=self.rank,
            world_size=self.world_size,
        )


class Objective(ABC):
    """A loss of micro-batches."""

    wants_labels = False
    """Whether it takes micro-batches of known anatomy, or those of any images."""

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:  # noqa: B027
        """Bring what is frozen to the device and the precision of the training."""

    @abstractmethod
    def losses(self, model: nn.Module, micro: Batch, draw: Draw) -> Tensor:
        """What the loss of one micro-batch is the mean of.

        Args:
            model: Model to train, of the kind that the objective is for.
            micro: Micro-batch on the model's device.
            draw: Random numbers.

        Returns:
            [B, ...], or a scalar where samples have no losses of their own.
        """


class TokenObjective(Objective):
    """Predict the frozen tokenizer's distribution over codes behind a random mask (stage 2).

    The tokenizer is held outside of the module tree: checkpoints, optimisers and DDP never see it.
    """

    def __init__(
        self, model: MaskedImageModel, tokenizer: Tokenizer, *, mask_ratio: float = 0.55
    ) -> None:
        """Configure.

        Args:
            model: Model that will be trained.
            tokenizer: Trained tokenizer; it is frozen here.
            mask_ratio: Share of tokens that are hidden.

        Raises:
            ValueError: If the tokenizer's codes or strides do not match the model.
        """
        codes = tokenizer.quantizer.codebook_size
        predicted = cast(nn.Linear, model.head[2]).out_features
        if codes != predicted:
            raise ValueError(f"the tokenizer has {codes} codes, the model predicts {predicted}")
        if tokenizer.stride != model.vit.patch_embed.patch_size:
            raise ValueError(
                f"the tokenizer's stride {tokenizer.stride} is not the model's patch size "
                f"{model.vit.patch_embed.patch_size}"
            )
        self.mask_ratio = mask_ratio
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self._targets = FrozenTargets(self.tokenizer)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the tokenizer to the device; its encoder computes in ``dtype``."""
        self.tokenizer.to(device)
        self._targets = FrozenTargets(self.tokenizer, dtype=dtype)

    def target(self, image: Tensor, degree: int) -> Tensor:
        """Logits of the codes, [B, L, K], that the frozen tokenizer sees."""
        return self._targets(image, degree)

    def losses(self, model: nn.Module, micro: Batch, draw: Draw) -> Tensor:
        """Soft cross-entropy at each masked position, [B, M]."""
        assert isinstance(model, MaskedImageModel)
        target = self.target(micro.image, micro.degree)
        visible = draw.visible(target.shape[0], target.shape[1], mask_ratio=self.mask_ratio)
        image = match_channels(micro.image, model.vit.in_chans)
        output = model(image, visible.to(image.device), target, micro.degree)
        return position_cross_entropy(output.logits, output.target, from_logits=True)


class PixelObjective(Objective):
    """Predict the voxels behind a random mask, each patch on its own scale (MAE)."""

    def __init__(self, *, mask_ratio: float = 0.75) -> None:
        """Configure.

        Args:
            mask_ratio: Share of tokens that are hidden.
        """
        self.mask_ratio = mask_ratio

    def losses(self, model: nn.Module, micro: Batch, draw: Draw) -> Tensor:
        """Squared error of each voxel of the masked positions, [B, M, N]."""
        assert isinstance(model, MaskedAutoencoder)
        image = match_channels(micro.image, model.vit.in_chans)
        depth, height, width = model.vit.patch_embed.grid_size(image.shape[2:], micro.degree)
        visible = draw.visible(image.shape[0], depth * height * width, mask_ratio=self.mask_ratio)
        output = model(image, visible.to(image.device), micro.degree)
        return pixel_errors(output.predicted, output.patches)


class PrototypeObjective(Objective):
    """Tell the structures of synthetic anatomies apart, whatever their appearance (RaSD)."""

    wants_labels = True

    def __init__(self, *, num_labels: int, temperature: float = TEMPERATURE) -> None:
        """Configure.

        Args:
            num_labels: Labels are below it.
            temperature: What similarities are divided by.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.num_labels = num_labels
        self.temperature = temperature

    def losses(self, model: nn.Module, micro: Batch, draw: Draw) -> Tensor:
        """Prototype loss of one view, or between two views; a scalar."""
        assert isinstance(model, VitDenseFeatures | UNetDenseFeatures)
        assert micro.labels is not None
        images = [micro.image] if micro.other_view is None else [micro.image, micro.other_view]
        together = match_channels(torch.cat(images), model.in_chans)
        features = model(together, micro.degree).chunk(len(images))
        return prototype_loss(
            features[0],
            coarse_labels(micro.labels, stride=model.stride, degree=micro.degree),
            num_labels=self.num_labels,
            other_view=features[1] if len(images) > 1 else None,
            temperature=self.temperature,
        )


def match_channels(image: Tensor, channels: int) -> Tensor:
    """Repeat a grey image for a model that takes several channels; anything else is an error.

    Args:
        image: [B, C, D, H, W].
        channels: What the model takes.
    """
    if image.shape[1] == channels:
        return image
    if image.shape[1] == 1:
        return image.expand(-1, channels, -1, -1, -1)
    raise ValueError(f"the model takes {channels} channels, the images have {image.shape[1]}")
