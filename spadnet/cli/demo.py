"""``spadnet demo``: both stages on the embedded images, then one report of what was learned."""

import copy
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from spadnet.cli import pretrain_mim, pretrain_tokenizer
from spadnet.cli.configure import configure
from spadnet.cli.data import build_data
from spadnet.cli.trained import find_tokenizer
from spadnet.cli.training import plain, run_dir
from spadnet.cli.usage import UsageError
from spadnet.data.preprocess import prepare
from spadnet.data.samples import list_samples, load_samples
from spadnet.data.volume import to_volume
from spadnet.evaluate.charts import Curve
from spadnet.evaluate.held_out import HeldOut, fit_to_multiple
from spadnet.evaluate.mim_figures import mim_figures
from spadnet.evaluate.panels import panels
from spadnet.evaluate.pretraining import summary
from spadnet.evaluate.report import print_table, write_demo_report, write_summary
from spadnet.evaluate.tokenizer_figures import tokenizer_figures
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.train.metrics_log import read_rows
from spadnet.train.run_folder import versions, write_json
from spadnet.train.speed import seconds_per_step
from spadnet.weights.checkpoint import read_config
from spadnet.weights.hub import load_pretrained
from spadnet.weights.source import HubOptions, find_folder

logger = logging.getLogger(__name__)

STARTS = ("scratch", "shipped")
TOKENIZER, ENCODER = "spad_vt_tiny", "spad_vit_tiny"
"""The package's own weights."""
_CURVES = (
    ("tokenizer", "Stage 1: tokenizer", "weighted sum of losses"),
    ("mim", "Stage 2: masked image modelling", "cross-entropy in nats"),
)
_PLAN_FILE = "plan.json"
_EVALUATION_MINUTES = 0.5
_TRIAL_STEPS = 4


def run(argv: Sequence[str]) -> int:
    """Train both stages, measure them on held-out images and write ``report.html``."""
    begin = time.monotonic()
    config = configure("demo", argv)
    if config is None:
        return 0
    if config.start not in STARTS:
        raise UsageError(f"start must be scratch or shipped, got {config.start!r}")
    out = run_dir(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    plan = read_plan(out) if config.resume == "auto" else None
    if plan is not None and plan.get("start", "scratch") != config.start:
        raise UsageError(f"{out}: was begun with start={plan.get('start', 'scratch')}")
    if plan is None:
        plan = make_plan(config)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / _PLAN_FILE, plan)
    resume = "null" if config.resume is None else str(config.resume)
    code = 0
    if config.start == "scratch":
        logger.info("stage 1 of 2: the tokenizer, %d steps", plan["tokenizer_steps"])
        code = pretrain_tokenizer.run(
            stage_arguments(config, "tokenizer", plan["tokenizer_steps"], resume)
        )
    if code == 0:
        plan = fit_second_stage(
            plan, config, minutes=plan["minutes"] + (time.monotonic() - begin) / 60
        )
        write_json(out / _PLAN_FILE, plan)
        logger.info("stage 2 of 2: masked image modelling, %d steps", plan["mim_steps"])
        code = pretrain_mim.run(
            [
                *stage_arguments(config, "mim", plan["mim_steps"], resume),
                f"tokenizer={tokenizer_source(config)}",
            ]
        )
    plan["minutes"] += (time.monotonic() - begin) / 60
    if code == 0:
        report(out, config, plan, begin=time.monotonic())
    write_json(out / _PLAN_FILE, plan)
    return code


def stage_arguments(config: DictConfig, stage: str, steps: int, resume: str) -> list[str]:
    """Command line of one stage."""
    arguments = [
        f"experiment={config[stage].experiment}",
        f"out={run_dir(config) / stage}",
        f"seed={config.seed}",
        f"trainer.max_steps={steps}",
        f"resume={resume}",
    ]
    if config.threads is not None:
        arguments.append(f"trainer.threads={config.threads}")
    if config.start == "shipped" and stage == "mim":
        depth = read_config(find_folder(ENCODER, HubOptions()))["model"]["arguments"]["depth"]
        arguments += [f"init={ENCODER}", f"model.depth={depth}"]
    return arguments


def tokenizer_source(config: DictConfig) -> str:
    """The tokenizer that stage 2 learns from."""
    return TOKENIZER if config.start == "shipped" else str(run_dir(config) / "tokenizer")


# --- how many steps ---


def read_plan(out: Path) -> dict[str, Any] | None:
    """Read what an earlier call planned in this folder, None if there was none."""
    try:
        plan: dict[str, Any] = json.loads((out / _PLAN_FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{out / _PLAN_FILE}: not a plan of the demo: {error}") from error
    return plan


def make_plan(config: DictConfig) -> dict[str, Any]:
    """Number of steps of each stage: as configured, fewer where the machine is too slow for it."""
    wanted = {"tokenizer": config.tokenizer.max_steps, "mim": config.mim.max_steps}
    if config.start == "shipped":
        del wanted["tokenizer"]
    seconds = trial_seconds(config)
    budget = 60 * (config.minutes - _EVALUATION_MINUTES)
    needed = sum(wanted[stage] * seconds[stage] for stage in wanted)
    share = min(1.0, budget / needed)
    if share < 1.0:
        logger.warning(
            "this machine would need %.0f minutes; both stages get %.0f %% of their steps",
            needed / 60,
            100 * share,
        )
    steps = {f"{stage}_steps": max(int(count * share), 10) for stage, count in wanted.items()}
    return {
        "start": config.start,
        "tokenizer_steps": 0,
        **steps,
        "seconds_per_step": seconds,
        "minutes": 0.0,
    }


def fit_second_stage(plan: dict[str, Any], config: DictConfig, *, minutes: float) -> dict[str, Any]:
    """Shorten stage 2 where stage 1 took longer than planned, to at least half of its steps.

    Args:
        plan: See :func:`make_plan`.
        config: Configuration of the demo.
        minutes: Minutes spent so far.
    """
    left = 60 * (config.minutes - _EVALUATION_MINUTES - minutes)
    steps = plan["mim_steps"]
    affordable = int(left / plan["seconds_per_step"]["mim"])
    return {**plan, "mim_steps": min(steps, max(affordable, (steps + 1) // 2))}


def trial_seconds(config: DictConfig) -> dict[str, float]:
    """Seconds that a step of each stage takes on this machine, tried on models of their own."""
    stage_1 = configure("pretrain_tokenizer", stage_arguments(config, "tokenizer", 10, "null"))
    stage_2 = configure(
        "pretrain_mim", [*stage_arguments(config, "mim", 10, "null"), "tokenizer=trial"]
    )
    assert stage_1 is not None
    assert stage_2 is not None
    first = pretrain_tokenizer.build_task(plain(stage_1))
    second = pretrain_mim.build_task(plain(stage_2), copy.deepcopy(first.tokenizer))
    in_chans = first.tokenizer.in_chans
    return {
        stage: seconds_per_step(
            task,
            build_data(plain(settings), in_chans=in_chans).module,
            num_steps=_TRIAL_STEPS,
            precision=settings.trainer.precision,
        )
        for stage, task, settings in (("tokenizer", first, stage_1), ("mim", second, stage_2))
    }


# --- what was learned ---


def report(out: Path, config: DictConfig, plan: dict[str, Any], *, begin: float) -> None:
    """Measure both models on held-out images; write and print what came out."""
    tokenizer = find_tokenizer(tokenizer_source(config))
    model = load_pretrained(out / "mim" / "mim")
    assert isinstance(model, MaskedImageModel)
    settings = configure(
        "pretrain_mim", [*stage_arguments(config, "mim", 10, "null"), "tokenizer=trained"]
    )
    assert settings is not None
    window = tuple(settings.data.tokens)
    images = held_out_images(tokenizer)
    codes = tokenizer_figures(tokenizer, images)
    masked = mim_figures(
        model, tokenizer, images, window=window, mask_ratio=settings.mask_ratio, seed=config.seed
    )
    pictures = panels(
        model, tokenizer, images, window=window, mask_ratio=settings.mask_ratio, seed=config.seed
    )
    plan["minutes"] += (time.monotonic() - begin) / 60
    figures = summary(images, codes, masked, minutes=plan["minutes"])
    write_summary(out, figures)
    page = write_demo_report(
        out,
        summary=figures,
        panels=pictures,
        curves=[
            loss_curve(out / stage, title, label)
            for stage, title, label in _CURVES
            if plan[f"{stage}_steps"]
        ],
        histogram=codes.codes.histogram.tolist(),
        trained=(
            f"{_tokenizer_words(plan)} and {plan['mim_steps']} steps of the vision transformer"
            f"{' from the package' if config.start == 'shipped' else ''} on "
            f"{len(list_samples('train'))} images of the package and on synthesis; measured on "
            f"{len(images)} images that no step has seen."
        ),
        facts=facts(config, tokenizer),
    )
    print_table(figures)
    logger.info("report written to %s", page)


def _tokenizer_words(plan: dict[str, Any]) -> str:
    steps = plan["tokenizer_steps"]
    return f"{steps} steps of the tokenizer" if steps else "The package's tokenizer"


def held_out_images(tokenizer: Tokenizer) -> list[HeldOut]:
    """The package's held-out images as the models take them."""
    images = []
    for sample, image in zip(list_samples("heldout"), load_samples("heldout"), strict=True):
        volume = to_volume(prepare(image), in_chans=tokenizer.in_chans, dtype=torch.float32)
        degree = volume.spacing.degree()
        fitted = fit_to_multiple(volume.image, degree)
        images.append(HeldOut(sample.name, fitted[None], volume.spacing, degree, sample.modality))
    return images


def loss_curve(run: Path, title: str, label: str) -> Curve:
    """Training loss of one stage."""
    rows = [row for row in read_rows(run / "metrics.csv") if row.get("train/loss")]
    steps = [float(row["step"]) for row in rows]
    losses = [float(row["train/loss"]) for row in rows]
    return Curve(title, label, {"training": (steps, losses)})


def facts(config: DictConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """Versions, seed and sizes for the end of the page."""
    return {
        "seed": str(config.seed),
        "threads": str(torch.get_num_threads()),
        "codes": str(tokenizer.quantizer.codebook_size),
        **{name: str(version) for name, version in versions().items() if version},
    }
