"""What each rank of the tests in test_ranks.py does: ``rank_program.py FOLDER PART ...``."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch import Callback, Trainer
from train.conftest import TASKS, labelled_steps, mixed_task, tiny_tokenizer

from spadnet.data.datasets import StepDataset
from spadnet.data.labelled_steps import JoinedSteps
from spadnet.data.volume import Volume
from spadnet.spacing import Spacing
from spadnet.train.checkpoint import finished_steps
from spadnet.train.datamodule import StepDataModule
from spadnet.train.launch import rank_label
from spadnet.train.optim import OptimSettings
from spadnet.train.run import FitResult, fit
from spadnet.train.step_task import StepTask
from spadnet.train.tokenizer_task import TokenizerTask

STEPS = 6
OPTIM = OptimSettings(lr=1e-2, warmup_steps=2, clip=1.0)


def gumbel_task(max_steps: int) -> TokenizerTask:
    """Task of stage 1 whose quantizer draws noise."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(quantizer="gumbel")
    return TokenizerTask(tokenizer, max_steps=max_steps, optim=OPTIM)


def mim_task(max_steps: int) -> StepTask:
    """Task of stage 2 without what layers draw for themselves."""
    task = TASKS["mim"](max_steps)
    for module in task.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return task


def averaged_task(max_steps: int) -> StepTask:
    """Task of stage 2 that keeps an average of its weights."""
    task = mim_task(max_steps)
    task.optim = task.optim._replace(ema=0.9)
    task.keep_average()
    return task


BUILD = {
    **TASKS,
    "mixed": mixed_task,
    "mim": mim_task,
    "gumbel": gumbel_task,
    "fsdp": averaged_task,
    "skipping": TASKS["adversarial"],
    "failing": mim_task,
}


def steps(*, labelled: bool) -> StepDataModule:
    """Crops of two random images, four per micro-batch, alone or beside labelled images."""
    generator = torch.Generator().manual_seed(0)
    volumes = [
        Volume(torch.rand(1, depth, 64, 64, generator=generator), Spacing(z, 1.0, 1.0), f"{z}")
        for depth, z in ((8, 8.0), (16, 4.0))
    ]
    data = StepDataset(
        volumes,
        max_steps=STEPS,
        degrees=[3, 5],
        degrees_per_step=2,
        tokens=(1, 2, 2),
        token_budget=16,
    )
    both = JoinedSteps(data, labelled_steps(STEPS))
    return StepDataModule(both if labelled else data, max_steps=STEPS)


class AtStep(Callback):
    """Do something to the second rank, or to a training that has only one, before a step."""

    def __init__(self, step: int, what: str) -> None:
        self.step = step
        self.what = what

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if finished_steps(trainer) != self.step or trainer.global_rank != trainer.world_size - 1:
            return
        if self.what == "raise":
            raise RuntimeError("the cooling failed")
        if self.what == "poison":
            batch[0].image[-1].fill_(torch.nan)
            return
        os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, name: str, **options: Any) -> FitResult:
    """Train the task of that name in double precision, where rounding hides no error.

    FSDP has single precision only.
    """
    precision = "32-true" if name == "fsdp" else "64-true"
    settings: dict[str, Any] = {"accelerator": "cpu", "precision": precision, "tensorboard": False}
    settings |= {"log_every_steps": 1, "show_progress": True, "rank_timeout": 60.0}
    settings |= {"skip_non_finite": 1}
    data = steps(labelled=name == "mixed")
    return fit(BUILD[name](STEPS), data, folder / name, **{**settings, **options})


def main(folder: Path, parts: list[str]) -> int:
    """Train each part; to one that ends in ``-WHAT`` that happens after three steps."""
    torch.set_num_threads(1)
    for part in parts:
        name, _, what = part.partition("-")
        try:
            callbacks = [AtStep(3, what)] if what else []
            strategy = "fsdp" if name == "fsdp" else "auto"
            result = train(folder, name, callbacks=callbacks, strategy=strategy)
        except Exception as error:
            sys.stderr.write(f"{rank_label()}error: {error}\n")
            return 1
        if what == "stop":
            sys.stderr.write(f"{rank_label()}stopped after step {result.step}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))
