"""Stage 2 as a Lightning task: masked image modelling supervised by a frozen tokenizer."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn

from spadnet.data.batch import Batch
from spadnet.data.masking import random_visible_index
from spadnet.losses.mim import soft_cross_entropy
from spadnet.models.frozen import FrozenTargets
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.train.gradients import average_gradients, clip_gradients
from spadnet.train.metrics_log import log_means
from spadnet.train.optim import OptimSettings, build_adamw, cosine_lr, set_lr
from spadnet.train.per_degree import metrics_per_degree
from spadnet.train.strategy import split_among_ranks

TargetFunction = Callable[[Tensor, int], Tensor]


class MimTask(LightningModule):
    """Train a SPAD-ViT to predict the tokenizer's distribution over codes behind a random mask.

    The frozen tokenizer is held outside the module tree: checkpoints, optimisers and DDP never see
    it.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        tokenizer: Tokenizer,
        *,
        max_steps: int,
        mask_ratio: float = 0.55,
        optim: OptimSettings = OptimSettings(lr=2e-5, clip=0.5),  # noqa: B008
        seed: int = 0,
    ) -> None:
        """Build the task.

        Args:
            model: Model to train.
            tokenizer: Trained tokenizer; it is frozen here.
            max_steps: Length of the training in optimiser steps.
            mask_ratio: Share of tokens that are hidden.
            optim: Settings of the optimiser.
            seed: Seed of the masks.

        Raises:
            ValueError: If the tokenizer's codes or strides do not match the model.
        """
        super().__init__()
        codes = tokenizer.quantizer.codebook_size
        predicted = cast(nn.Linear, model.head[2]).out_features
        if codes != predicted:
            raise ValueError(f"the tokenizer has {codes} codes, the model predicts {predicted}")
        if tokenizer.stride != model.vit.patch_embed.patch_size:
            raise ValueError(
                f"the tokenizer's stride {tokenizer.stride} is not the model's patch size "
                f"{model.vit.patch_embed.patch_size}"
            )
        self.automatic_optimization = False
        self.model = model
        self.mask_ratio = mask_ratio
        self.optim = optim
        self.max_steps = max_steps
        self.seed = seed
        frozen = tokenizer.eval().requires_grad_(False)
        self._frozen = (frozen,)  # a tuple keeps it out of the module tree
        self._targets = FrozenTargets(frozen)

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        return self._frozen[0]

    def configure_model(self) -> None:
        """Split the model among the ranks, block by block, where the strategy asks for it."""
        split_among_ranks(self.model, self.model.vit.blocks, mesh=self.device_mesh)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the model."""
        return build_adamw(self.model, settings=self.optim)

    def setup(self, stage: str) -> None:
        """Bring the frozen tokenizer to the device and the precision of the training."""
        self.tokenizer.to(self.device)
        is_low = str(self.trainer.precision).startswith("bf16")
        self._targets = FrozenTargets(
            self.tokenizer, dtype=torch.bfloat16 if is_low else torch.float32
        )

    def target(self, image: Tensor, degree: int) -> Tensor:
        """Logits of the codes, [B, L, K], that the frozen tokenizer sees."""
        return self._targets(image, degree)

    def training_step(self, batch: Sequence[Batch], index: int) -> None:
        """Do one optimiser step over the micro-batches."""
        step = self.trainer.global_step
        optimizer = cast(Any, self.optimizers())
        set_lr(optimizer, cosine_lr(step, max_steps=self.max_steps, settings=self.optim))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % (1 << 63))
        losses = []
        for micro in batch:
            loss = self.masked_loss(micro, generator)
            self.manual_backward(loss / len(batch))
            losses.append(loss.detach())
        average_gradients(self.model.parameters())
        norm = clip_gradients(self.model, self.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        per_degree = zip((micro.degree for micro in batch), losses, strict=True)
        metrics = metrics_per_degree("train/loss", per_degree)
        metrics |= {"train/loss": torch.stack(losses).mean(), "train/gradient_norm": norm}
        log_means(self, metrics)

    def masked_loss(self, micro: Batch, generator: torch.Generator) -> Tensor:
        """Soft cross-entropy at the masked positions of one micro-batch."""
        target = self.target(micro.image, micro.degree)
        visible = random_visible_index(
            target.shape[0],
            target.shape[1],
            mask_ratio=self.mask_ratio,
            generator=generator,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        ).to(self.device)
        image = match_channels(micro.image, self.model.vit.in_chans)
        output = self.model(image, visible, target, micro.degree)
        return soft_cross_entropy(output.logits, output.target, from_logits=True)


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
