"""Do one step of a training again, exactly, and watch where it ceases to be finite."""

import logging
import re
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning import LightningModule
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from spadnet.train.checkpoint import (
    finished_steps,
    list_checkpoints,
    read_checkpoint,
    step_of,
)
from spadnet.train.datamodule import StepDataModule
from spadnet.train.non_finite import FOLDER, STATE_NAME, read_bad_step
from spadnet.train.run import fit
from spadnet.train.step_task import StepTask

logger = logging.getLogger(__name__)

_SHOWN = 5


class Replayed(NamedTuple):
    """What a step did when it was done again.

    Attributes:
        step: Its number, from 1.
        start: Finished steps of the state that it was computed from.
        losses: Of its micro-batches, in the order of their backwards.
        batch: Degree and keys of each micro-batch.
        metrics: What the step logged; empty if it broke off.
        findings: What was not finite, in the order in which it appeared.
        is_same_batch: Whether the data gave the batch that was kept; None if none was.
    """

    step: int
    start: int
    losses: list[float]
    batch: list[tuple[int, list[str]]]
    metrics: dict[str, float]
    findings: list[str]
    is_same_batch: bool | None


def replay(
    task: StepTask, datamodule: StepDataModule, run_dir: Path, step: int, **settings: Any
) -> Replayed:
    """Go on from the newest state before a step, and do that step under anomaly detection.

    Nothing in the run folder changes.

    Args:
        task: As it was when the training began.
        datamodule: Its batches.
        run_dir: Run folder.
        step: Number of the step, from 1, as in logs and messages.
        settings: Of :func:`spadnet.train.run.fit`: how it was computed.

    Raises:
        ValueError: If there is no such step, or a checkpoint is damaged.
    """
    if not 1 <= step <= datamodule.max_steps:
        raise ValueError(f"step {step}: the training has steps 1 to {datamodule.max_steps}")
    state, start = newest_before(run_dir, step)
    watch = _Watch(step, read_bad_step(run_dir, step))
    datamodule.max_steps = step
    task.keeps_bad_steps = False
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit(
                task,
                datamodule,
                Path(scratch),
                resume=None if state is None else str(state),
                save_every_steps=None,
                tensorboard=False,
                csv_file=False,
                show_progress=False,
                callbacks=[watch],
                **settings,
            )
        except (RuntimeError, ValueError) as error:
            if watch.batch is None:
                raise  # of a step before, or of no step at all
            watch.findings.append(_explain(error, len(task.losses), caught))
        finally:
            watch.end()
    assert watch.batch is not None
    return Replayed(
        step,
        start,
        [float(loss) for loss in task.losses],
        [(micro.degree, list(micro.keys)) for micro in watch.batch],
        watch.metrics,
        watch.findings,
        watch.is_same_batch,
    )


def newest_before(run_dir: Path, step: int) -> tuple[Path | None, int]:
    """Newest state of a run from before a step, and its number of finished steps.

    None and 0 where none is that old: the training begins anew.
    """
    kept = sorted((run_dir / FOLDER).glob(f"step-*/{STATE_NAME}"))
    found = [(step_of(read_checkpoint(path, mmap=True)), path) for path in kept]
    found += [(int(re.sub(r"\D", "", path.stem)), path) for path in list_checkpoints(run_dir)]
    fitting = [(number, path) for number, path in found if number < step]
    if not fitting:
        return None, 0
    number, path = max(fitting)
    return path, number


class _Watch(Callback):
    """Looks at every module's output and every gradient of one step."""

    def __init__(self, step: int, kept: Sequence[dict[str, Any]]) -> None:
        self.step = step
        self.kept = kept
        self.batch: list[Any] | None = None
        self.findings: list[str] = []
        self.metrics: dict[str, float] = {}
        self.is_same_batch: bool | None = None
        self._hooks: list[Any] = []
        self._anomaly = torch.autograd.set_detect_anomaly(False)
        self._named: set[str] = set()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to watch, with the batch that was kept where there is one."""
        if finished_steps(trainer) != self.step - 1:
            return
        if self.kept:
            self.is_same_batch = _take_kept(batch, self.kept)
        self.batch = batch
        for number, micro in enumerate(batch):
            if not bool(micro.image.isfinite().all()):
                self._tell(f"image of micro-batch {number}")
        for name, value in pl_module.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                self._tell(f"{name}, before the step")
        cast(StepTask, pl_module).skip_non_finite = 1 << 30  # go through to the end of the step
        self._anomaly = torch.autograd.set_detect_anomaly(True)
        for name, module in pl_module.named_modules():
            if name and not name.startswith("averaged"):
                hook = partial(self._look, cast(StepTask, pl_module), name)
                self._hooks.append(module.register_forward_hook(hook))

    def _look(self, task: StepTask, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        found = [value for value in _tensors(output) if not bool(value.isfinite().all())]
        if not found or any(not bool(v.isfinite().all()) for v in _tensors(inputs)):
            return  # it is fine, or another one's fault
        kind = type(module).__name__
        self._tell(f"output of {name} ({kind}), micro-batch {len(task.losses)}")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the gradients that have gathered so far."""
        if self.batch is None:
            return
        bad = [
            name
            for name, parameter in pl_module.named_parameters()
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
        ]
        if bad:
            more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            number = len(cast(StepTask, pl_module).losses) - 1
            self._tell(f"gradient of {', '.join(bad[:_SHOWN])}{more}, micro-batch {number}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take what the step logged."""
        if self.batch is not None:
            self.metrics = {n: float(value) for n, value in trainer.callback_metrics.items()}
            self.end()

    def end(self) -> None:
        """Cease to watch."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._anomaly.__exit__()

    def _tell(self, text: str) -> None:
        if len(self._named) < _SHOWN and text not in self._named:
            self._named.add(text)
            self.findings.append(text)


def _tensors(value: Any) -> list[Tensor]:
    """Floating-point tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def _take_kept(batch: list[Any], kept: Sequence[dict[str, Any]]) -> bool:
    """Put what was kept in the place of what was drawn again; return whether they are the same."""
    same = True
    for number, micro in enumerate(batch):
        changes = {}
        for name, value in micro._asdict().items():
            if isinstance(value, Tensor):
                parts = [rank["micro_batches"][number][name] for rank in kept]
                whole = torch.cat(parts).to(value)
                same &= whole.shape == value.shape and torch.equal(whole, value)
                changes[name] = whole
        batch[number] = micro._replace(**changes)
    return same


def _explain(error: BaseException, micro: int, caught: Sequence[Any]) -> str:
    """One line about what broke off: autograd's word, and our line that led to it."""
    told = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    traces = [str(w.message) for w in caught if "Traceback of forward call" in str(w.message)]
    lines = re.findall(r'File "[^"]*/(spadnet/[^"]+)", line (\d+)', traces[-1]) if traces else []
    where = f", computed in {lines[-1][0]}:{lines[-1][1]}" if lines else ""
    return f"{told}{where}, micro-batch {micro - 1}"
