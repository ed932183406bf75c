"""Tiny tasks and batches for the tests of the training engine."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch.utils.data import Dataset

from spadnet.data.batch import Batch
from spadnet.data.labelled_steps import JoinedSteps, LabelledSteps, RankedSteps
from spadnet.models.dense import VitDenseFeatures
from spadnet.models.discriminator import SpadDiscriminator
from spadnet.models.mae import MaskedAutoencoder
from spadnet.models.mim import MaskedImageModel
from spadnet.models.quantizer import QuantizerKind
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.train.datamodule import StepDataModule
from spadnet.train.objectives import PixelObjective, PrototypeObjective, TokenObjective
from spadnet.train.optim import OptimSettings
from spadnet.train.pretrain_task import Part, PretrainTask
from spadnet.train.run import FitResult, fit
from spadnet.train.step_task import StepTask
from spadnet.train.synthetic import labelled_images
from spadnet.train.tokenizer_task import CodeStart, TokenizerTask

NUM_CODES = 8
OPTIM = OptimSettings(lr=1e-2, warmup_steps=2, clip=1.0)


class RandomSteps(Dataset[list[Batch]]):
    """Random images; each step is a pure function of its number."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, step: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(step)
        return [
            Batch(
                torch.rand(2, 1, depth, 32, 32, generator=generator),
                degree,
                torch.ones(2, 3),
                [f"{step}-{degree}-{i}" for i in range(2)],
            )
            for degree, depth in ((5, 1), (3, 2))
        ]


def tiny_tokenizer(quantizer: QuantizerKind = "soft") -> Tokenizer:
    """Tokenizer of a few thousand parameters."""
    return Tokenizer(
        in_chans=1,
        widths=(8, 8, 16),
        codebook_size=NUM_CODES,
        quantizer=quantizer,
        norm_latent=True,
        short_training=True,
    )


def tokenizer_task(max_steps: int) -> TokenizerTask:
    """Task of stage 1 whose codes start from clusters after a third of the training."""
    torch.manual_seed(0)
    return TokenizerTask(
        tiny_tokenizer(),
        max_steps=max_steps,
        optim=OPTIM,
        code_start=CodeStart(share=0.34, num_steps=2, entropy=1.0),
    )


def adversarial_task(max_steps: int) -> TokenizerTask:
    """Task of stage 1 with all that has a state: discriminator, open gate, averaged codebook."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        in_chans=1, widths=(8, 8, 16), codebook_size=NUM_CODES, quantizer="nearest"
    )
    task = TokenizerTask(
        tokenizer,
        max_steps=max_steps,
        discriminator=SpadDiscriminator(1, widths=(8, 16)),
        optim=OPTIM,
        discriminator_optim=OPTIM,
    )
    assert task.gate is not None
    task.gate.threshold = 100.0
    return task


def mim_task(max_steps: int) -> PretrainTask:
    """Task of stage 2 with dropped residual branches, which draw from the global generator."""
    torch.manual_seed(0)
    vit = SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=2, drop_path_rate=0.5)
    model = MaskedImageModel(vit, codebook_size=NUM_CODES, num_mask_layers=1)
    objective = TokenObjective(model, tiny_tokenizer())
    return PretrainTask({"tokens": Part(model, objective)}, max_steps=max_steps, optim=OPTIM)


def mixed_task(max_steps: int) -> PretrainTask:
    """Task of all objectives around one encoder, unlike in weight."""
    torch.manual_seed(0)
    vit = SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=1)
    mim = MaskedImageModel(vit, codebook_size=NUM_CODES, num_mask_layers=1)
    mae = MaskedAutoencoder(vit, decoder_dim=16, decoder_depth=1, head_dim=16)
    dense = VitDenseFeatures(vit, num_features=8, width=8)
    parts = {
        "tokens": Part(mim, TokenObjective(mim, tiny_tokenizer())),
        "pixels": Part(mae, PixelObjective(), 0.5),
        "disentangle": Part(dense, PrototypeObjective(num_labels=16), 0.25),
    }
    return PretrainTask(parts, max_steps=max_steps, optim=OPTIM)


def labelled_steps(max_steps: int) -> LabelledSteps:
    """Steps of four labelled images of a degree, two views of each."""
    return LabelledSteps(
        labelled_images,
        max_steps=max_steps,
        degrees=[4, 5],
        degrees_per_step=2,
        tokens=(2, 2, 2),
        token_budget=16,
    )


TASKS: dict[str, Callable[[int], StepTask]] = {
    "tokenizer": tokenizer_task,
    "adversarial": adversarial_task,
    "mim": mim_task,
}


@pytest.fixture(params=sorted(TASKS))
def build_task(request: pytest.FixtureRequest) -> Callable[[int], StepTask]:
    """Build the task of some stage for a number of steps."""
    return TASKS[request.param]


@pytest.fixture
def quick_fit() -> Callable[..., FitResult]:
    """Fit on random images on the CPU."""

    def run(
        task: StepTask,
        run_dir: Path,
        *,
        max_steps: int,
        num_workers: int = 0,
        dataset: Dataset[list[Batch]] | None = None,
        **options: object,
    ) -> FitResult:
        dataset = RandomSteps() if dataset is None else dataset
        data = StepDataModule(dataset, max_steps=max_steps, num_workers=num_workers)
        settings: dict[str, object] = {
            "accelerator": "cpu",
            "tensorboard": False,
            "log_every_steps": 1,
        }
        return fit(task, data, run_dir, **{**settings, **options})  # type: ignore[arg-type]

    return run


@pytest.fixture
def build_mixed() -> Callable[[int], PretrainTask]:
    """Build the task of all objectives for a number of steps."""
    return mixed_task


@pytest.fixture
def mixed_steps() -> JoinedSteps:
    """Six steps of random images beside labelled ones."""
    return JoinedSteps(cast(RankedSteps, RandomSteps()), labelled_steps(6))


@pytest.fixture
def random_steps() -> Callable[[], RandomSteps]:
    """Build a data set of random images."""
    return RandomSteps
