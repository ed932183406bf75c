"""A training step of any stage: gradients are gathered and judged before a single weight moves."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn

from spadnet.train.average import start_average, update_average
from spadnet.train.checkpoint import finished_steps
from spadnet.train.gradients import average_gradients, clip_gradients
from spadnet.train.metrics_log import has_row, mean_over_ranks
from spadnet.train.non_finite import NonFiniteError, keep_bad_step
from spadnet.train.optim import (
    OptimSettings,
    build_adamw,
    check_settings,
    learning_rate,
    set_lr,
)
from spadnet.train.precision import loss_scaler

logger = logging.getLogger(__name__)

_SKIPPED_KEY = "spadnet_skipped_steps"


class Update(NamedTuple):
    """What one optimiser trains.

    Attributes:
        module: Its parameters.
        optim: Settings of the optimiser.
        loss: Name of its loss among the metrics.
        norm: Name of its gradient's norm.
    """

    module: nn.Module
    optim: OptimSettings
    loss: str = "train/loss"
    norm: str = "train/gradient_norm"


class Note(NamedTuple):
    """What meters want to know of a micro-batch.

    Attributes:
        keys: Of its samples.
        losses: Of each sample by itself, [B].
        codes: Most probable codes of any shape; None where it has none.
    """

    keys: list[str]
    losses: Tensor
    codes: Tensor | None = None


class StepTask(LightningModule, ABC):
    """Train on the micro-batches of a step, whose gradients add up, with one update per optimiser.

    A loss or a gradient that is not finite on any rank leaves weights, buffers and averages of all
    ranks as they were: the training stops, or goes on with the next step where that is allowed.

    Attributes:
        losses: Of the micro-batches of this step, in the order of their backwards.
        notes: What meters want to know of this step; none of a step that was left out.
        skip_non_finite: How many steps that are not finite may be left out.
        skipped_steps: How many were.
        keeps_bad_steps: Whether what they had is written to the run folder.
        averaged: Moving average of ``trained``; None where none is kept.
    """

    losses: list[Tensor]
    notes: list[Note]
    averaged: nn.Module | None

    def __init__(self, *, max_steps: int, optim: OptimSettings) -> None:
        """Build the task.

        Args:
            max_steps: Length of the training in optimiser steps.
            optim: Settings of the optimiser.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__()
        check_settings(optim)
        self.automatic_optimization = False
        self.max_steps = max_steps
        self.optim = optim
        self.losses = []
        self.notes = []
        self.skip_non_finite = 0
        self.skipped_steps = 0
        self.keeps_bad_steps = True
        self.averaged = None

    # --- what a stage defines ---

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The model that is saved in the end."""

    @abstractmethod
    def accumulate(self, batch: Sequence[Any], step: int) -> dict[str, Tensor | float]:
        """Do the backwards of a step by :meth:`push`; nothing but registered buffers may change.

        Args:
            batch: Micro-batches of this rank.
            step: Number of finished steps.

        Returns:
            Metrics of this rank, those of the updates' losses among them.
        """

    def updates(self) -> list[Update]:
        """What is trained, in the order of the optimisers."""
        return [Update(self.trained, self.optim)]

    def to_compile(self) -> list[nn.Module]:
        """Modules of which each makes one graph per degree."""
        return [self.trained]

    def before_step(self, step: int) -> None:
        """Do what comes before a step and must not be undone with it."""

    # --- what all have in common ---

    @property
    def final_model(self) -> nn.Module:
        """What is scored and saved: the averaged weights where there are any."""
        return self.trained if self.averaged is None else self.averaged

    def keep_average(self) -> None:
        """Keep an average of the weights from here on, where the settings ask for it."""
        if self.optim.ema > 0:
            self.averaged = start_average(self.trained)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One AdamW per update."""
        return [build_adamw(update.module, settings=update.optim) for update in self.updates()]

    def push(self, loss: Tensor, scaled: Tensor) -> Tensor:
        """Add the gradient of one micro-batch.

        Args:
            loss: Its loss, as it is shown.
            scaled: Its share of the step's loss.

        Returns:
            The loss without its graph.
        """
        self.losses.append(loss.detach())
        self.manual_backward(scaled)
        return self.losses[-1]

    def training_step(self, batch: Sequence[Any], index: int) -> None:
        """Do one optimiser step over the micro-batches.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite, and no more steps may be skipped.
        """
        step = finished_steps(self.trainer)
        self.before_step(step)
        kept = [buffer.clone() for buffer in self.buffers()]
        self.losses, self.notes = [], []
        updates, optimizers = self.updates(), self._optimizers()
        scaler = loss_scaler(self.trainer)
        metrics = mean_over_ranks(self.accumulate(batch, step), device=self.device)
        for update, optimizer in zip(updates, optimizers, strict=True):
            average_gradients(update.module.parameters())
            if scaler is not None:
                scaler.unscale_(optimizer)
            metrics[update.norm] = clip_gradients(update.module, update.optim.clip)
        bad = _not_finite(metrics, [n for update in updates for n in (update.loss, update.norm)])
        if not bad:
            for update, optimizer in zip(updates, optimizers, strict=True):
                set_lr(
                    optimizer, learning_rate(step, max_steps=self.max_steps, settings=update.optim)
                )
                optimizer.step()
        for update in updates:
            update.module.zero_grad()
        # float16 finds its scale by steps that overflow: these are no fault.
        overflow = scaler is not None and not set(bad) & {u.loss for u in updates}
        if scaler is not None:
            metrics["train/loss_scale"] = scaler.get_scale()
            scaler.update()
        if bad and not (overflow and scaler is not None and scaler.get_scale() >= 1):
            self.notes = []
            self._restore(kept)
            self._leave_out(batch, step, metrics, bad)
        elif not bad and self.averaged is not None:
            update_average(self.averaged, self.trained, decay=self.optim.ema, step=step)
        if self.skip_non_finite:
            metrics["train/skipped_steps"] = float(self.skipped_steps)
        if has_row(self.trainer, step + 1):
            self.log_dict(metrics)

    def _optimizers(self) -> list[Any]:
        found = cast(Any, self.optimizers())
        return found if isinstance(found, list) else [found]

    @torch.no_grad()
    def _restore(self, kept: Sequence[Tensor]) -> None:
        for buffer, old in zip(self.buffers(), kept, strict=True):
            buffer.copy_(old)

    def _leave_out(
        self,
        batch: Sequence[Any],
        step: int,
        metrics: dict[str, Tensor | float],
        bad: Sequence[str],
    ) -> None:
        """Keep what is needed to find the fault; go on, or stop."""
        losses = [float(loss) for loss in self.losses]
        shown = {name: float(value) for name, value in metrics.items()}
        where = None
        if self.keeps_bad_steps:
            where = keep_bad_step(self.trainer, batch, step, losses=losses, metrics=shown)
        keys = [key for micro in batch for key in micro.keys]
        text = (
            f"step {step + 1}: {' and '.join(bad)} not finite, with {', '.join(keys)}"
            f"{'' if where is None else f'; kept in {where}'}"
        )
        if self.skipped_steps >= self.skip_non_finite:
            raise NonFiniteError(text)
        self.skipped_steps += 1
        logger.warning(
            "%s; left out, %d of at most %d", text, self.skipped_steps, self.skip_non_finite
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember how many steps were left out."""
        checkpoint[_SKIPPED_KEY] = self.skipped_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped_steps = int(checkpoint.get(_SKIPPED_KEY, 0))


def _not_finite(metrics: dict[str, Tensor | float], names: Sequence[str]) -> list[str]:
    """Names of values that are not finite; waits for the device once."""
    values = [torch.as_tensor(metrics[name]) for name in names]
    device = next((v.device for v in values if v.device.type != "cpu"), torch.device("cpu"))
    flags = torch.stack([value.detach().to(device).isfinite() for value in values]).tolist()
    return [name for name, is_finite in zip(names, flags, strict=True) if not is_finite]
