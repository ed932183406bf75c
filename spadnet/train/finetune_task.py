"""Fine-tuning as a Lightning task: any model on labelled images."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from spadnet.data.task_steps import LabelledBatch
from spadnet.models.turned import run_along
from spadnet.train.objectives import match_channels
from spadnet.train.optim import OptimSettings
from spadnet.train.step_task import StepTask


class FinetuneTask(StepTask):
    """Train a model on labelled images; an average of its weights is what counts in the end."""

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        max_steps: int,
        optim: OptimSettings = OptimSettings(),  # noqa: B008  # an immutable tuple
        freeze: bool = False,
    ) -> None:
        """Build the task.

        Args:
            model: Takes images and their degree; what does not require gradients stays as it is.
            loss: Takes what the model gives, a tensor or one per level, and the batch's target.
            max_steps: Length of the training in optimiser steps.
            optim: Settings of the optimiser.
            freeze: Whether the encoder keeps its weights: the head alone is trained.

        Raises:
            ValueError: If nothing is left to train, or a setting is out of range.
        """
        super().__init__(max_steps=max_steps, optim=optim)
        if freeze:
            freeze_encoder(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("nothing is left to train")
        self.model = model
        self.loss = loss
        self.is_frozen = freeze
        self.keep_average()

    @property
    def trained(self) -> nn.Module:
        """The whole model."""
        return self.model

    def accumulate(self, batch: Sequence[LabelledBatch], step: int) -> dict[str, Tensor | float]:
        """Gradients of the mean loss over all cases of the step."""
        self.model.train()
        if self.is_frozen:
            keep_frozen_still(self.model)
        total = sum(micro.image.shape[0] for micro in batch)
        mean: Tensor | float = 0.0
        for micro in batch:
            output = run_along(
                self.model,
                match_channels(micro.image, _channels(self.model)),
                micro.degree,
                axis=micro.axis,
                out_degree=micro.out_degree,
            )
            share = self.mixed_loss(output, micro) * (micro.image.shape[0] / total)
            mean = mean + self.push(share, share)
        return {"train/loss": mean}

    def mixed_loss(self, output: Any, micro: LabelledBatch) -> Tensor:
        """Loss of the model's outputs; where images were mixed, of both targets by their share."""
        loss = self.loss(output, micro.target)
        if micro.mixture is None:
            return cast(Tensor, loss)
        share, other = micro.mixture
        return cast(Tensor, share * loss + (1 - share) * self.loss(output, other))


def freeze_encoder(model: nn.Module) -> None:
    """Freeze all but the head: what is named ``head`` or ``pool`` at the model's top."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in ("head", "pool"))


def keep_frozen_still(model: nn.Module) -> None:
    """Put what is frozen in evaluation mode: no dropout, no moving averages."""
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def target_statistics(targets: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Mean and standard deviation of values to be predicted, [N] each."""
    values = torch.stack(list(targets)).float()
    return {"mean": values.mean(0), "std": values.std(0).clamp_min(1e-6)}


def _channels(model: nn.Module) -> int:
    vit = getattr(model, "vit", model)
    return int(cast(Any, vit).in_chans)
