"""Pre-training as a Lightning task: one encoder, one objective or a weighted sum of several."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spadnet.data.batch import Batch
from spadnet.models.vit import SpadViT
from spadnet.train.objectives import Draw, Objective
from spadnet.train.optim import OptimSettings
from spadnet.train.per_degree import metrics_per_degree
from spadnet.train.step_task import Note, StepTask
from spadnet.train.strategy import split_among_ranks


class Part(NamedTuple):
    """One objective of a pre-training.

    Attributes:
        model: What it trains; models of several objectives share their encoder.
        objective: What it asks.
        weight: Factor of its loss.
    """

    model: nn.Module
    objective: Objective
    weight: float = 1.0


class PretrainTask(StepTask):
    """Minimise the weighted sum of objectives.

    A step gets the micro-batches of one optimiser step. Each objective takes the mean over those
    that are made for it: of known anatomy or of any images.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        *,
        max_steps: int,
        optim: OptimSettings = OptimSettings(lr=2e-5, clip=0.5),  # noqa: B008
        seed: int = 0,
    ) -> None:
        """Build the task.

        Args:
            parts: Objectives by name.
            max_steps: Length of the training in optimiser steps.
            optim: Settings of the optimiser.
            seed: Seed of the masks.

        Raises:
            ValueError: If there is no objective, or a weight is not positive.
        """
        super().__init__(max_steps=max_steps, optim=optim)
        if not parts:
            raise ValueError("a pre-training needs an objective, got none")
        for name, part in parts.items():
            if not 0 < part.weight < float("inf"):
                raise ValueError(f"the weight of {name} must be positive, got {part.weight}")
        models = {name: part.model for name, part in parts.items()}
        self.model = nn.ModuleDict(models) if len(parts) > 1 else next(iter(models.values()))
        self.objectives = {name: part.objective for name, part in parts.items()}
        self.weights = {name: part.weight for name, part in parts.items()}
        self.seed = seed
        self.keep_average()

    @property
    def trained(self) -> nn.Module:
        """The models of all objectives."""
        return self.model

    def to_compile(self) -> list[nn.Module]:
        """The model of each objective."""
        return [self.model_of(name) for name in self.objectives]

    def model_of(self, name: str) -> nn.Module:
        """The model that an objective trains."""
        return self.model[name] if isinstance(self.model, nn.ModuleDict) else self.model

    def configure_model(self) -> None:
        """Split the model among the ranks, block by block, where the strategy asks for it."""
        for model in (self.model, self.averaged):
            if model is not None:
                vits = [module for module in model.modules() if isinstance(module, SpadViT)]
                blocks = [block for vit in vits for block in vit.blocks]
                split_among_ranks(model, blocks, mesh=self.device_mesh)

    def setup(self, stage: str) -> None:
        """Bring what is frozen to the device and the precision of the training."""
        is_low = str(self.trainer.precision).startswith("bf16")
        for objective in self.objectives.values():
            objective.prepare(self.device, torch.bfloat16 if is_low else torch.float32)

    def draw(self, step: int, number: int = 0) -> Draw:
        """Random numbers of an objective, a pure function of seed and step, alike on all ranks."""
        entropy = self.seed * 1_000_003 + step + (number << 40)
        generator = torch.Generator().manual_seed(entropy % (1 << 63))
        return Draw(generator, self.global_rank, self.trainer.world_size)

    def accumulate(self, batch: Sequence[Batch], step: int) -> dict[str, Tensor | float]:
        """Gradients of all objectives."""
        losses = {
            name: self.add_gradients(name, batch, self.draw(step, number))
            for number, name in enumerate(self.objectives)
        }
        return self.loss_metrics(losses)

    def add_gradients(
        self, name: str, batch: Sequence[Batch], draw: Draw
    ) -> list[tuple[int, Tensor]]:
        """Add an objective's gradients; return degree and loss of each of its micro-batches."""
        objective, model = self.objectives[name], self.model_of(name)
        own = [micro for micro in batch if (micro.labels is not None) == objective.wants_labels]
        if not own:
            raise ValueError(f"a step holds no micro-batch for the objective {name}")
        losses = []
        for micro in own:
            values = objective.losses(model, micro, draw)
            loss = values.mean()
            shown = self.push(loss, self.weights[name] * loss / len(own))
            if values.ndim > 0:
                self.notes.append(Note(micro.keys, values.detach().flatten(1).mean(1)))
            losses.append((micro.degree, shown))
        return losses

    def loss_metrics(
        self, losses: Mapping[str, list[tuple[int, Tensor]]]
    ) -> dict[str, Tensor | float]:
        """Losses by objective and degree, and their weighted sum."""
        metrics: dict[str, Tensor | float] = {}
        means = {}
        for name, pairs in losses.items():
            label = "loss" if len(losses) == 1 else name
            metrics |= metrics_per_degree(f"train/{label}", pairs)
            means[name] = torch.stack([loss for _, loss in pairs]).mean()
        if len(means) > 1:
            metrics |= {f"train/{name}": mean for name, mean in means.items()}
        total = torch.stack([self.weights[name] * mean for name, mean in means.items()]).sum()
        return {**metrics, "train/loss": total}
