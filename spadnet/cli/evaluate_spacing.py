"""``spadnet evaluate study=spacing``: networks for thin slices meet thick ones."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spadnet.cli.evaluate_report import page_facts
from spadnet.cli.evaluate_tasks import Subject
from spadnet.cli.evaluate_training import Cases, Trained, read_all, settings_of, train_best
from spadnet.cli.finetune_model import build_segmentor, in_chans
from spadnet.cli.usage import UsageError
from spadnet.data.journal import hash_of
from spadnet.data.task_images import TaskImage
from spadnet.evaluate.costs import measured
from spadnet.evaluate.features import data_digest
from spadnet.evaluate.intervals import Outcome
from spadnet.evaluate.records import VERSION, Point, Results
from spadnet.evaluate.spacing_study import AXES, Condition, conditions, spacing_page
from spadnet.evaluate.thick_slices import RepeatedSlices, Way, thick_dice
from spadnet.spacing import MAX_DEGREE

logger = logging.getLogger(__name__)

_THIN = ("data.thick_slices=0.0",)


class _Training(NamedTuple):
    """One training, and the networks of the study that it gives.

    Attributes:
        networks: How each takes thick slices, by name.
        share: Of the training cases that have averaged slices.
        extra: Settings of the training.
        wrap: What is done to its images.
    """

    networks: dict[str, Way]
    share: float
    extra: tuple[str, ...]
    wrap: Callable[[list[TaskImage]], Sequence[TaskImage]]


def run_spacing(
    subjects: Sequence[Subject], options: Mapping[str, Any], out: Path, argv: Sequence[str]
) -> int:
    """Train on thin slices, test on averaged ones, along each axis."""
    slabs = options["spacing"]["slabs"]
    if not slabs or not all(isinstance(slab, int) and 2 <= slab <= 16 for slab in slabs):
        raise UsageError(f"spacing.slabs must be whole numbers from 2 to 16, got {slabs}")
    share = options["spacing"]["share"]
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise UsageError(f"spacing.share must lie in (0, 1), got {share}")
    results = Results(out)
    found = []
    for subject in subjects:
        if subject.task.kind != "segmentation":
            raise UsageError(f"{subject.name}: study=spacing is for label maps")
        found.append((subject.name, _run_task(subject, options, results, out, tuple(slabs))))
    page = spacing_page(
        found,
        results.records,
        slabs=slabs,
        headline="Spacing shift",
        facts=page_facts(options, argv),
    )
    results.write_page(page)
    return 0


def _trainings(share: float, slabs: tuple[int, ...]) -> list[_Training]:
    def alone(images: list[TaskImage]) -> Sequence[TaskImage]:
        return images

    def averaged(images: list[TaskImage]) -> Sequence[TaskImage]:
        return RepeatedSlices(images, share=share, slabs=slabs)

    return [
        _Training({"spadnet": "degree"}, share, (f"data.thick_slices={share}",), alone),
        _Training(
            {
                "plain, slices repeated": "repeat",
                "plain, resampled first": "interpolate",
                "spadnet, thin slices only": "degree",
            },
            0.0,
            _THIN,
            alone,
        ),
        _Training({"plain, slab averaging": "repeat"}, share, _THIN, averaged),
    ]


def _run_task(
    subject: Subject,
    options: Mapping[str, Any],
    results: Results,
    out: Path,
    slabs: tuple[int, ...],
) -> list[Point]:
    cases: Cases | None = None
    done: list[Point] = []
    for seed in options["seeds"]:
        for training in _trainings(options["spacing"]["share"], slabs):
            settings = settings_of(subject, seed=seed, extra=training.extra)
            kept = ("model", "data", "optim", "recipe", "trainer", "validate", "seed")
            rules = {name: settings[name] for name in kept}
            marks = hash_of(
                [data_digest(subject.task, subject.rule), rules, slabs, training.share, VERSION]
            )
            points = {
                (name, condition): Point(
                    subject.name, name, "spacing", condition.label, seed, marks
                )
                for name in training.networks
                for condition in conditions(slabs)
            }
            done += points.values()
            if all(results.outcome(point) is not None for point in points.values()):
                continue
            with measured() as cost:
                model = build_segmentor({**settings, "init": None}, subject.task)
                cases = cases or _thin_cases(subject, in_chans(model))
                trained = train_best(
                    model,
                    subject.task,
                    subject,
                    cases,
                    seed=seed,
                    folder=out / "training" / hash_of([marks, list(training.networks)]),
                    extra=training.extra,
                    wrap=training.wrap,
                )
            for (name, condition), point in points.items():
                outcome = _test(trained, cases, condition, training.networks[name])
                extra = {
                    "axis": AXES[condition.axis],
                    "slab": condition.slab,
                    "num_train": len(subject.task.of("train")),
                    "num_test": len(outcome.values),
                    "trainable_parameters": trained.num_trained,
                    "best_step": trained.step,
                }
                draws = options["draws"]
                results.add(
                    point, "segmentation", outcome, cost, share=1.0, extra=extra, draws=draws
                )
                logger.info(
                    "%s, %s: Dice %.4f", name, condition.label, float(outcome.values.mean())
                )
    return done


def _thin_cases(subject: Subject, channels: int) -> Cases:
    cases = read_all(subject, channels, test_maps=True)
    bad = [case.key for case in (*cases.train, *cases.test) if case.degree != 0]
    if bad:
        is_flat = any(case.degree == MAX_DEGREE for case in (*cases.train, *cases.test))
        what = "images are flat" if is_flat else "slices are thick already"
        raise UsageError(
            f"{subject.name}: {what}: {', '.join(bad[:5])}; study=spacing averages thin ones"
        )
    return cases


def _test(trained: Trained, cases: Cases, condition: Condition, way: Way) -> Outcome:
    assert trained.window is not None
    rows = [
        thick_dice(
            trained.model,
            case,
            axis=condition.axis,
            slab=condition.slab,
            way=way,
            rule=trained.window,
            num_classes=trained.num_classes,
        )
        for case in cases.test
    ]
    return Outcome(np.array(rows), None)
