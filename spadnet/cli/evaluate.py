"""``spadnet evaluate``: a model beside its baselines, with few and many labels."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from spadnet.cli.configure import configure
from spadnet.cli.evaluate_frozen import (
    THUMBNAIL,
    build_extractors,
    check_writable,
    digests,
    features_of,
)
from spadnet.cli.evaluate_options import check_options, config_dir_flags
from spadnet.cli.evaluate_quality import run_quality
from spadnet.cli.evaluate_report import write_report
from spadnet.cli.evaluate_spacing import run_spacing
from spadnet.cli.evaluate_tasks import (
    GIVEN,
    RECIPE,
    SCRATCH,
    Given,
    Subject,
    build_start,
    check_unet,
    find_given,
    find_subjects,
    repeats_scratch,
)
from spadnet.cli.evaluate_training import (
    Cases,
    Trained,
    read_all,
    settings_of,
    test_outcome,
    train_best,
)
from spadnet.cli.finetune_model import first_head
from spadnet.cli.trained import choose_device
from spadnet.cli.training import plain
from spadnet.data.journal import hash_of
from spadnet.data.tasks import TaskData
from spadnet.evaluate.costs import measured
from spadnet.evaluate.duplicates import Duplicate, find_duplicates
from spadnet.evaluate.features import Extractor, Features, data_digest
from spadnet.evaluate.few_shot import few_shot
from spadnet.evaluate.frozen import Targets, read_targets, run_frozen
from spadnet.evaluate.intervals import Outcome
from spadnet.evaluate.records import VERSION, Point, Results
from spadnet.losses.scores import CHOOSING

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """A point, the cases it learns from, and how it is computed.

    Attributes:
        point: Which.
        few: With the training cases to be used.
        run: Gives what came out, and further facts for its records.
    """

    point: Point
    few: TaskData
    run: Callable[[], tuple[Outcome, dict[str, Any]]]


def run(argv: Sequence[str]) -> int:
    """Measure, and write ``results.json`` and ``report.html``."""
    config = configure("evaluate", argv)
    if config is None:
        return 0
    options = plain(config)
    check_options(options)
    device = choose_device(options)
    out = Path(str(options["out"])).expanduser()
    if options["study"] == "spacing":
        subjects = find_subjects(options, in_chans=1, config_dir=config_dir_flags(argv))
        check_writable(out, ["", "outcomes"])
        return run_spacing(subjects, options, out, argv)
    given = find_given(str(options["model"]))
    subjects = find_subjects(
        options, in_chans=given.model.in_chans, config_dir=config_dir_flags(argv)
    )
    check_unet(given, subjects, options)
    check_writable(out, ["", "features", "outcomes"])
    if options["study"] == "quality":
        return run_quality(given, subjects, options, out, device, argv)
    results = Results(out)
    is_frozen = options["protocols"] != ["finetune"]
    extractors = build_extractors(given, options, device) if is_frozen else {}
    points: dict[str, list[Point]] = {}
    duplicates: dict[str, list[Duplicate]] = {}
    for subject in subjects:
        bench = Bench(subject, given, extractors, options, out)
        plans = [plan for protocol in options["protocols"] for plan in bench.plans(protocol)]
        points[subject.name] = [plan.point for plan in plans]
        duplicates[subject.name] = bench.duplicates()
        work_through(plans, subject, results, draws=options["draws"])
    write_report(out, given, subjects, points, duplicates, results, options, argv)
    return 0


def work_through(plans: Sequence[Plan], subject: Subject, results: Results, *, draws: int) -> None:
    """Compute the points that are not there yet, one after the other, and write each at once."""
    total = len(subject.task.of("train"))
    for number, plan in enumerate(plans, 1):
        point = plan.point
        if results.outcome(point) is not None:
            continue
        count = len(plan.few.of("train"))
        with measured() as cost:
            outcome, extra = plan.run()
        facts = {"num_train": count, "num_test": len(outcome.values), **extra}
        share = count / total
        results.add(point, subject.task.kind, outcome, cost, share=share, extra=facts, draws=draws)
        metric = CHOOSING[subject.task.kind]
        found = [r["value"] for r in results.of(point) if r["metric"] == metric]
        logger.info(
            "%s %d/%d: %s, %s, %s labels, seed %d: %s %s in %.1f s",
            subject.name,
            number,
            len(plans),
            point.model,
            point.protocol,
            point.share,
            point.seed,
            metric,
            ", ".join(f"{value:.4f}" for value in found) or "not defined",
            cost["seconds"],
        )


class Bench:
    """What is measured on one task; images, features and labels are read when they are needed."""

    def __init__(
        self,
        subject: Subject,
        given: Given,
        extractors: Mapping[str, Extractor],
        options: Mapping[str, Any],
        out: Path,
    ) -> None:
        """Configure.

        Args:
            subject: The task.
            given: The measured model.
            extractors: Of all models in the frozen protocols.
            options: Of the verb.
            out: Folder of the evaluation.
        """
        self.subject = subject
        self.given = given
        self.extractors = extractors
        self.options = options
        self.out = out

    @cached_property
    def features(self) -> dict[str, Features]:
        """Features by all extractors."""
        size = self.options["batch_size"]
        return features_of(self.subject, self.extractors, self.out, batch_size=size)

    @cached_property
    def targets(self) -> Targets:
        """What features are to tell."""
        return read_targets(self.subject.task, self.features[THUMBNAIL], self.subject.rule)

    @cached_property
    def cases(self) -> Cases:
        """Images as trainings take them."""
        return read_all(self.subject, self.given.model.in_chans)

    def duplicates(self) -> list[Duplicate]:
        """Images of two splits that are alike."""
        found = find_duplicates(
            self.subject.task,
            self.features[THUMBNAIL],
            rule=self.subject.rule,
            threshold=self.options["duplicates"],
        )
        if found:
            logger.warning(
                "%s: %d images are alike across splits (%d exactly), which makes scores flatter",
                self.subject.name,
                len(found),
                sum(pair.exact for pair in found),
            )
        return found

    def plans(self, protocol: str) -> list[Plan]:
        """All points of a protocol, the cheapest first."""
        if protocol == "finetune":
            return self._trained_plans()
        subject, options = self.subject, self.options
        is_map = subject.task.kind == "segmentation"
        found = []
        for name, digest in digests(subject, self.extractors).items():
            for amount in subject.amounts:
                # All labels are the same labels for every seed.
                seeds = (
                    options["seeds"][:1] if amount.share == 1 and not is_map else options["seeds"]
                )
                for seed in seeds:
                    settings = hash_of([digest, options["cells"] if is_map else None, VERSION])
                    point = Point(subject.name, name, protocol, str(amount), seed, settings)
                    few = few_shot(subject.task, amount, seed=seed)
                    found.append(Plan(point, few, partial(self._frozen, point, few)))
        return found

    def _frozen(self, point: Point, few: TaskData) -> tuple[Outcome, dict[str, Any]]:
        features = self.features[point.model]
        (outcome,), fitted = run_frozen(
            point.protocol,
            self.subject.task,
            features,
            self.targets,
            few=few,
            seed=point.seed,
            cells=self.options["cells"],
        )
        chosen = "neighbours" if point.protocol == "knn" else "penalty"
        facts = {
            "trainable_parameters": fitted.num_trained,
            "feature_seconds": round(features.seconds, 2),
            chosen: fitted.chosen,
        }
        return outcome, facts

    def _trained_plans(self) -> list[Plan]:
        subject = self.subject
        rule = subject.rule
        found = []
        first = settings_of(subject, seed=self.options["seeds"][0])
        first_head(first, subject.task, model=self.given.model)
        is_same = repeats_scratch(self.given, subject, first)
        for kind in (GIVEN, SCRATCH) if is_same else (GIVEN, SCRATCH, RECIPE):
            for amount in subject.amounts:
                for seed in self.options["seeds"]:
                    name = kind
                    settings = settings_of(subject, seed=seed)
                    if kind == RECIPE:
                        name = f"{kind}:{settings['model']['name']}"
                    relevant = {
                        key: value
                        for key, value in settings.items()
                        if key not in ("out", "name", "resume", "paths", "logger", "callbacks")
                    }
                    if rates := self.options["rates"]:
                        relevant["optim"] = {**settings["optim"], "lr": rates}
                    weights = self.given.digest if kind != RECIPE else None
                    marks = hash_of([data_digest(subject.task, rule), weights, relevant, VERSION])
                    point = Point(subject.name, name, "finetune", str(amount), seed, marks)
                    few = few_shot(subject.task, amount, seed=seed)
                    found.append(Plan(point, few, partial(self._trained, kind, point, few)))
        return found

    def _trained(self, kind: str, point: Point, few: TaskData) -> tuple[Outcome, dict[str, Any]]:
        subject = self.subject
        best: tuple[Trained, dict[str, Any]] | None = None
        for rate in self.options["rates"] or [None]:
            extra = [] if rate is None else [f"optim.lr={rate}"]
            settings = settings_of(subject, seed=point.seed, extra=extra)
            trained = train_best(
                build_start(self.given, kind, subject, settings),
                few,
                subject,
                self.cases,
                seed=point.seed,
                folder=self.out / "training" / point.key,
                extra=extra,
            )
            if best is None or trained.score > best[0].score:
                best = trained, settings
        assert best is not None
        trained, settings = best
        outcome = test_outcome(trained, subject.task, subject, self.cases.test)
        return outcome, {
            "trainable_parameters": trained.num_trained,
            "steps": settings["trainer"]["max_steps"],
            "best_step": trained.step,
            "learning_rate": settings["optim"]["lr"],
            "validation_score": trained.score if math.isfinite(trained.score) else None,
        }
