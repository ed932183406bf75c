"""Score a training on validation now and then, keep the best state, stop when nothing improves."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from spadnet.train.checkpoint import finished_steps
from spadnet.train.finetune_task import FinetuneTask

logger = logging.getLogger(__name__)

Score = Callable[[nn.Module], Mapping[str, float]]
Save = Callable[[nn.Module, int, Mapping[str, float]], None]


class KeepBest(Callback):
    """Must come before the checkpoint is saved, which holds what this remembers."""

    def __init__(
        self,
        score: Score,
        save: Save,
        *,
        chosen_by: str,
        every_steps: int,
        patience: int | None = None,
        from_start: bool = False,
    ) -> None:
        """Configure.

        Args:
            score: Scores a model on validation.
            save: Takes a model that is better than those before, its step and its scores.
            chosen_by: Name of the score that decides; more is better.
            every_steps: Steps between two scores; the last step is always scored.
            patience: Scores without a better one after which to stop; None for never.
            from_start: Whether the state before the first step is scored as well.
        """
        if every_steps < 1 or (patience is not None and patience < 1):
            raise ValueError(
                f"every_steps and patience must be positive: {every_steps}, {patience}"
            )
        self.score = score
        self.save = save
        self.chosen_by = chosen_by
        self.every_steps = every_steps
        self.patience = patience
        self.from_start = from_start
        self.latest: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.best_step = 0
        self.without_better = 0
        self.has_stopped = False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {
            "best": dict(self.best),
            "best_step": self.best_step,
            "without_better": self.without_better,
            "has_stopped": self.has_stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a training that has stopped early as it is; score one that begins."""
        if self.has_stopped:
            logger.info("stopped early before; best after step %d", self.best_step)
            trainer.should_stop = True
        if self.from_start and finished_steps(trainer) == 0:
            self._judge(cast(FinetuneTask, pl_module), 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score, and keep or stop."""
        step = finished_steps(trainer)
        if step % self.every_steps and step < trainer.num_training_batches:
            return
        scores = self._judge(cast(FinetuneTask, pl_module), step)
        self.latest = {f"val/{name}": value for name, value in scores.items()}
        for log in trainer.loggers:  # not by the module, which would repeat them at later steps
            log.log_metrics(self.latest, step=step - 1)
        if self.patience is not None and self.without_better >= self.patience:
            self.has_stopped = trainer.should_stop = True
            logger.info("no better score %d times in a row: stopping", self.without_better)

    def _judge(self, module: FinetuneTask, step: int) -> dict[str, float]:
        """Score the state after a step, and keep it if it is the best."""
        model = module.final_model
        was_training = model.training
        scores = dict(self.score(model.eval()))
        model.train(was_training)
        value = scores[self.chosen_by]
        value = -math.inf if math.isnan(value) else value  # one class alone has no AUC
        best = self.best.get(self.chosen_by, -math.inf)
        if value > best or not self.best:
            self.best = {**scores, self.chosen_by: value}
            self.best_step, self.without_better = step, 0
            self.save(model, step, scores)
        else:
            self.without_better += 1
        logger.info(
            "step %d: validation %s; best %s %.4f after step %d",
            step,
            ", ".join(f"{name} {found:.4f}" for name, found in scores.items()),
            self.chosen_by,
            self.best[self.chosen_by],
            self.best_step,
        )
        return scores
