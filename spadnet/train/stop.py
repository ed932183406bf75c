"""Stop a training between two steps: finish the step, save, leave.

The process then ends with 128 plus the signal's number, as a process does that the signal kills:
143 for SIGTERM, 138 for SIGUSR1, 130 for Ctrl-C. A batch script requeues on it; see docs/ranks.md.
"""

import contextlib
import logging
import signal
import threading
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from spadnet.ranks import num_ranks
from spadnet.train.checkpoint import finished_steps
from spadnet.train.metrics_log import has_row

logger = logging.getLogger(__name__)

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class StopOnSignal(Callback):
    """Turn Ctrl-C, SIGTERM and SIGUSR1 into a stop after the current step.

    Ctrl-C twice stops at once. Other signals may come more than once: a scheduler sends them to a
    launcher and to its ranks, and the launcher passes them on. All ranks stop after the same step,
    whichever of them got the signal, and however late.

    Must come before :class:`spadnet.train.checkpoint.SaveCheckpoints`, which then saves.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which would stop anywhere inside a step."""
        if num_ranks() > 1:
            # Of its own, on the CPU: asking the others must not wait for a GPU.
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if a signal came to any rank."""
        if num_ranks() > 1:
            received = torch.tensor(self.received or 0)
            dist.all_reduce(received, dist.ReduceOp.MAX, group=self._group)
            self.received = int(received) or None
        if self.received is not None:
            trainer.should_stop = True
            if not has_row(trainer, finished_steps(trainer)):
                # Lightning logs where it stops, and would log values of an earlier step.
                cast(Any, trainer)._results.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._give_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_alone = num_ranks() == 1
        if self.received is not None:
            if number != signal.SIGINT or not is_alone:
                return
            self._give_back()
            raise KeyboardInterrupt
        self.received = number
        again = "; Ctrl-C stops at once without saving" if is_alone else ""
        logger.warning("stopping after this step%s", again)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            with contextlib.suppress(ValueError, TypeError):
                signal.signal(number, handler)
        self._before = {}
