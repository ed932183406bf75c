"""What a training tells besides its losses: speed, memory, rates, and losses of each source."""

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from spadnet.ranks import num_ranks
from spadnet.spacing import required_multiple
from spadnet.train.checkpoint import finished_steps
from spadnet.train.datamodule import StepDataModule
from spadnet.train.flops import CountFlops, flop_counter, matmul_peak
from spadnet.train.run_folder import write_json
from spadnet.train.step_task import Note, StepTask

logger = logging.getLogger(__name__)

PEAK_FILE = "matmul_peak.json"
SYNTHETIC = "synthesis"
UNKNOWN = "unknown"
_SYNTHETIC_KEY = "synthetic-"
_KINDS = ("dataset", "modality")


class Source(NamedTuple):
    """Where an image comes from; empty where it is not known.

    Attributes:
        dataset: Data set.
        modality: Kind of image.
    """

    dataset: str
    modality: str


class Aside(Protocol):
    """Something that takes time of its own between steps.

    Attributes:
        seconds_aside: Seconds taken so far.
    """

    seconds_aside: float


class Meters(Callback):
    """Log, at the steps at which losses are logged, what happened since the time before.

    ``speed/``: images, tokens and model FLOPs per second over all ranks, the share that the latter
    is of what matrix products reach here, seconds per step, share of the time spent on waiting for
    data. ``memory/``: peaks of this process in MB. ``train/``: learning rates, and codes in use and
    the perplexity of their use. ``loss_per_dataset/``, ``loss_per_modality/``: means over samples.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        sources: Mapping[str, Source] | None = None,
        codebook_size: int | None = None,
        aside: Sequence[Aside] = (),
        stride: int = 16,
    ) -> None:
        """Configure.

        Args:
            run_dir: Run folder.
            sources: By key of a sample; keys of synthesis need not be there.
            codebook_size: Number of codes, where steps tell which they use.
            aside: What takes time that is not the training's.
            stride: In-plane size of a token in pixels.
        """
        self.run_dir = run_dir
        self.aside = aside
        self.stride = stride
        self._flops: CountFlops | None = None
        self._peak: float | None = None
        self._counted: dict[tuple[int, ...], int] = {}
        self._places = _Places(sources or {})
        self._sums = torch.zeros(len(self._places.names), 2, dtype=torch.float64)
        self._codes = torch.zeros(codebook_size or 0, dtype=torch.float64)
        self._start()

    def _start(self, waited: float = 0.0) -> None:
        self._since = time.perf_counter()
        self._aside_before = sum(part.seconds_aside for part in self.aside)
        self._waited_before = waited
        self._steps = self._images = self._tokens = self._operations = 0

    def state_dict(self) -> dict[str, Any]:
        """What was summed up since the last row: a resumed training's next row is the same."""
        return {"names": self._places.names, "sums": self._sums.cpu(), "codes": self._codes.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, unless the data have changed."""
        if state_dict["names"] == self._places.names:
            self._sums = state_dict["sums"]
        if state_dict["codes"].shape == self._codes.shape:
            self._codes = state_dict["codes"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare counting operations, before the model may be split among ranks."""
        self._flops = flop_counter(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._sums = self._sums.to(pl_module.device, _sum_type(pl_module.device))
        self._codes = self._codes.to(pl_module.device, _sum_type(pl_module.device))
        self._start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Sequence[Any],
        batch_idx: int,
    ) -> None:
        """Add up a step; log when it is time."""
        self._steps += 1
        for micro in batch:
            shape = tuple(micro.image.shape)
            self._images += shape[0]
            self._tokens += shape[0] * num_tokens(shape, micro.degree, stride=self.stride)
            self._operations += self._operations_of(shape, micro)
        for note in cast(StepTask, pl_module).notes:
            self._add(note)
        step = finished_steps(trainer)
        if step % int(cast(Any, trainer).log_every_n_steps) == 0:
            self._log(trainer, pl_module, step)

    def _add(self, note: Note) -> None:
        if note.codes is not None and self._codes.numel():
            flat = note.codes.flatten()
            self._codes.index_add_(0, flat, self._codes.new_ones(()).expand(flat.shape[0]))
        if self._places.names:
            values = note.losses
            rows = torch.tensor([self._places.rows(key) for key in note.keys])
            rows = rows.to(values.device, non_blocking=True)
            pairs = torch.stack([values, torch.ones_like(values)], 1).to(self._sums.dtype)
            for column in rows.unbind(1):
                self._sums.index_add_(0, column, pairs)

    def _operations_of(self, shape: tuple[int, ...], micro: Any) -> int:
        """Operations of a micro-batch; counted once for each shape and degree."""
        if self._flops is None:
            return 0
        views = 0
        if getattr(micro, "labels", None) is not None:
            views = 1 if micro.other_view is None else 2
        key = (*shape, micro.degree, views)
        if key not in self._counted:
            begin = time.perf_counter()
            try:
                self._counted[key] = self._flops(shape, micro.degree, views)
            except (RuntimeError, NotImplementedError) as error:
                logger.warning("cannot count the operations of this model: %s", error)
                self._flops = None
                return 0
            self._since += time.perf_counter() - begin
        return self._counted[key]

    # --- a row ---

    def _log(self, trainer: Trainer, task: LightningModule, step: int) -> None:
        metrics = self._speed(trainer, task) | _memory(task.device) | _rates(trainer)
        sums, codes = self._sums, self._codes
        if num_ranks() > 1:
            both = torch.cat([sums.flatten(), codes])
            dist.all_reduce(both)
            sums, codes = both[: sums.numel()].view_as(sums), both[sums.numel() :]
        for name, (total, count) in zip(self._places.names, sums.tolist(), strict=True):
            if count > 0:
                metrics[name] = total / count
        if codes.numel() and float(codes.sum()) > 0:
            used, perplexity = code_use(codes)
            metrics |= {"train/codes_used": used, "train/perplexity": perplexity}
        for log in trainer.loggers:
            log.log_metrics(metrics, step=step - 1)
        self._sums, self._codes = torch.zeros_like(self._sums), torch.zeros_like(self._codes)
        self._start(self._waited(trainer))

    def _speed(self, trainer: Trainer, task: LightningModule) -> dict[str, float]:
        if task.device.type == "cuda":
            torch.cuda.synchronize(task.device)
        taken = time.perf_counter() - self._since
        aside = sum(part.seconds_aside for part in self.aside) - self._aside_before
        seconds = max(taken - aside, 1e-9)
        ranks = trainer.world_size
        found = {
            "speed/seconds_per_step": seconds / self._steps,
            "speed/images_per_second": ranks * self._images / seconds,
            "speed/tokens_per_second": ranks * self._tokens / seconds,
            "speed/data_wait_share": (self._waited(trainer) - self._waited_before) / seconds,
        }
        if self._operations > 0:
            if self._peak is None:
                self._peak = find_peak(self.run_dir, trainer, task.device)
            found["speed/model_flops_per_second"] = ranks * self._operations / seconds
            found["speed/share_of_matmul_peak"] = self._operations / seconds / self._peak
        return found

    @staticmethod
    def _waited(trainer: Trainer) -> float:
        data: Any = getattr(trainer, "datamodule", None)
        return data.seconds_waited if isinstance(data, StepDataModule) else 0.0


class _Places:
    """Row of the table of sums for each data set and each modality."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        datasets = sorted({source.dataset for source in sources.values()} - {""})
        modalities = sorted({source.modality for source in sources.values()} - {""})
        names = [f"loss_per_dataset/{name}" for name in datasets]
        names += [f"loss_per_modality/{name}" for name in modalities]
        if sources:
            names += [f"loss_per_{kind}/{name}" for kind in _KINDS for name in (SYNTHETIC, UNKNOWN)]
        self.names = names
        self._row = {name: number for number, name in enumerate(names)}
        self._sources = sources

    def rows(self, key: str) -> tuple[int, int]:
        """Rows of a sample's data set and of its modality."""
        if key.startswith(_SYNTHETIC_KEY):
            source = Source(SYNTHETIC, SYNTHETIC)
        else:
            source = self._sources.get(key, Source("", ""))
        return (
            self._row[f"loss_per_dataset/{source.dataset or UNKNOWN}"],
            self._row[f"loss_per_modality/{source.modality or UNKNOWN}"],
        )


def num_tokens(shape: Sequence[int], degree: int, *, stride: int) -> int:
    """Tokens of one sample of a batch [B, C, D, H, W]."""
    steps = required_multiple(degree, stride=stride)
    return math.prod(max(n // step, 1) for n, step in zip(shape[2:], steps, strict=True))


def code_use(counts: Tensor) -> tuple[float, float]:
    """Share of codes that occur, and the perplexity of their use, from counts [K]."""
    share = counts.double() / counts.sum()
    used = (counts > 0).double().mean()
    return float(used), float(torch.special.entr(share).sum().exp())


def find_peak(run_dir: Path, trainer: Trainer, device: torch.device) -> float:
    """Operations per second of matrix products in the training's precision, measured once a run.

    Args:
        run_dir: Keeps what the first rank measured.
        trainer: Knows the precision.
        device: Of this rank.
    """
    dtype = _product_type(str(trainer.precision))
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {torch.get_num_threads()} threads"
    here = {"device": name, "dtype": str(dtype).removeprefix("torch.")}
    file = run_dir / PEAK_FILE
    try:
        kept = json.loads(file.read_text())
        if {name: kept[name] for name in here} == here:
            return float(kept["flops_per_second"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or cut off: it is measured anew
    peak = matmul_peak(device, dtype)
    if trainer.is_global_zero:
        write_json(file, {**here, "flops_per_second": peak})
    return peak


def _product_type(precision: str) -> torch.dtype:
    kinds = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return kinds.get(precision.partition("-")[0], torch.float32)


def _sum_type(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _memory(device: torch.device) -> dict[str, float]:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    found = {"memory/process_peak_mb": peak}
    if device.type == "cuda":
        found["memory/device_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return found


def _rates(trainer: Trainer) -> dict[str, float]:
    """The largest learning rate of each optimiser."""
    names = ("train/lr", "train/discriminator_lr")
    rates: Iterable[float] = (
        max(float(group["lr"]) for group in optimizer.param_groups)
        for optimizer in trainer.optimizers
    )
    return dict(zip(names, rates, strict=False))
