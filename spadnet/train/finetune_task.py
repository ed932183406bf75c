"""Fine-tuning as a Lightning task: any model on labelled images, with layer-wise learning rates."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn

from spadnet.data.task_steps import LabelledBatch
from spadnet.train.checkpoint import write_atomic
from spadnet.train.objectives import match_channels
from spadnet.train.optim import DenseAdamW, OptimSettings, cosine_lr, parameter_groups

Schedule = Literal["cosine", "steps"]


class FinetuneSettings(NamedTuple):
    """What is trained and how fast.

    Attributes:
        optim: Settings of AdamW and its warm-up.
        schedule: ``"cosine"``, or ``"steps"``: a tenth after half and after three quarters.
        layer_decay: Factor on the learning rate from each layer to the one below; 1 for none.
        freeze: Whether the encoder keeps its weights: the head alone is trained.
        ema: Decay of the average of the weights that is scored and saved; 0 for none.
    """

    optim: OptimSettings = OptimSettings()
    schedule: Schedule = "cosine"
    layer_decay: float = 1.0
    freeze: bool = False
    ema: float = 0.99


class FinetuneTask(LightningModule):
    """Train a model on labelled images; an average of its weights is what counts in the end."""

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        max_steps: int,
        settings: FinetuneSettings = FinetuneSettings(),  # noqa: B008
        keep_bad_batch: Path | None = None,
    ) -> None:
        """Build the task.

        Args:
            model: Takes images and their degree; what does not require gradients stays as it is.
            loss: Takes what the model gives, a tensor or one per level, and the batch's target.
            max_steps: Length of the training in optimiser steps.
            settings: What is trained and how fast.
            keep_bad_batch: File for a batch whose loss is not finite.

        Raises:
            ValueError: If nothing is left to train, or a setting is out of range.
        """
        super().__init__()
        if settings.schedule not in ("cosine", "steps"):
            raise ValueError(f"schedule must be 'cosine' or 'steps', got {settings.schedule!r}")
        if not 0 < settings.layer_decay <= 1 or not 0 <= settings.ema < 1:
            raise ValueError(
                f"layer_decay must lie in (0, 1] and ema in [0, 1), got {settings.layer_decay} "
                f"and {settings.ema}"
            )
        self.automatic_optimization = False
        if settings.freeze:
            freeze_encoder(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("nothing is left to train")
        self.model = model
        self.loss = loss
        self.settings = settings
        self.max_steps = max_steps
        self.keep_bad_batch = keep_bad_batch
        self.averaged = copy.deepcopy(model).requires_grad_(False) if settings.ema > 0 else None

    @property
    def final_model(self) -> nn.Module:
        """What is scored and saved: the averaged weights where there are any."""
        return self.model if self.averaged is None else self.averaged

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained, slower in lower layers."""
        optim = self.settings.optim
        groups = scaled_groups(
            self.model, weight_decay=optim.weight_decay, layer_decay=self.settings.layer_decay
        )
        return DenseAdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)

    def training_step(self, batch: Sequence[LabelledBatch], index: int) -> None:
        """Do one optimiser step over the micro-batches.

        Raises:
            ValueError: If a loss is not finite; the batch is kept, its cases are named.
        """
        step = self.trainer.global_step
        optimizer = cast(Any, self.optimizers())
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.model.train()
        if self.settings.freeze:
            keep_frozen_still(self.model)
        total = sum(micro.image.shape[0] for micro in batch)
        mean: Tensor | float = 0.0
        for micro in batch:
            output = self.model(match_channels(micro.image, _channels(self.model)), micro.degree)
            loss = self.mixed_loss(output, micro) * (micro.image.shape[0] / total)
            if not math.isfinite(float(loss.detach())):
                self._give_up(micro, step)
            self.manual_backward(loss)
            mean = mean + loss.detach()
        limit = self.settings.optim.clip
        norm = nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.grad is not None],
            float("inf") if limit is None else limit,
        )
        optimizer.step()
        optimizer.zero_grad()
        if self.averaged is not None:
            update_average(self.averaged, self.model, decay=self.settings.ema, step=step)
        self.log("train/gradient_norm", norm)
        self.log("train/loss", mean, prog_bar=True)

    def mixed_loss(self, output: Any, micro: LabelledBatch) -> Tensor:
        """Loss of the model's outputs; where images were mixed, of both targets by their share."""
        loss = self.loss(output, micro.target)
        if micro.mixture is None:
            return cast(Tensor, loss)
        share, other = micro.mixture
        return cast(Tensor, share * loss + (1 - share) * self.loss(output, other))

    def rate(self, step: int) -> float:
        """Learning rate of the head after ``step`` optimiser steps."""
        optim = self.settings.optim
        if self.settings.schedule == "cosine" or step < optim.warmup_steps:
            return cosine_lr(step, max_steps=self.max_steps, settings=optim)
        return optim.lr * 0.1 ** sum(step >= share * self.max_steps for share in (0.5, 0.75))

    def _give_up(self, micro: LabelledBatch, step: int) -> None:
        where = ""
        if self.keep_bad_batch is not None:
            kept = {
                "image": micro.image.cpu(),
                "target": micro.target.cpu(),
                "degree": micro.degree,
                "keys": micro.keys,
            }
            write_atomic(self.keep_bad_batch, lambda file: torch.save(kept, file))
            where = f"; the batch is kept in {self.keep_bad_batch}"
        raise ValueError(
            f"the loss of step {step + 1} is not finite, with {', '.join(micro.keys)}{where}"
        )


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


def scaled_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups with ``lr_scale``: ``layer_decay`` to the number of layers above.

    Args:
        model: With timm's ``group_matcher`` and ``no_weight_decay`` where ``layer_decay`` is not 1.
        weight_decay: Decay of matrices and kernels.
        layer_decay: Factor from each layer to the one below.
    """
    if layer_decay == 1:
        return cast(list[dict[str, Any]], parameter_groups([model], weight_decay))
    if not callable(getattr(model, "group_matcher", None)):
        raise ValueError(
            f"a {type(model).__name__} has no layers to decay over; recipe.layer_decay=1"
        )
    from timm.optim import param_groups_layer_decay  # torchvision comes along: seconds

    never = cast(Any, model).no_weight_decay()
    groups = param_groups_layer_decay(
        model, weight_decay=weight_decay, no_weight_decay_list=never, layer_decay=layer_decay
    )
    return [
        {key: value for key, value in group.items() if key != "param_names"} for group in groups
    ]


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """Move averaged weights towards the present ones; buffers are copied.

    Args:
        averaged: Changed in place.
        model: After the step.
        decay: Of the average, smaller in the first steps, where the weights are still far off.
        step: Finished steps before this one.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), share)
    for kept, new in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(new)


def target_statistics(targets: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Mean and standard deviation of values to be predicted, [N] each."""
    values = torch.stack(list(targets)).float()
    return {"mean": values.mean(0), "std": values.std(0).clamp_min(1e-6)}


def _channels(model: nn.Module) -> int:
    vit = getattr(model, "vit", model)
    return int(cast(Any, vit).in_chans)
