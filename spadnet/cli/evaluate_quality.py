"""``spadnet evaluate study=quality``: what degraded images cost in training and in test."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from spadnet.cli.evaluate_frozen import THUMBNAIL, build_extractors, features_of
from spadnet.cli.evaluate_report import page_facts
from spadnet.cli.evaluate_tasks import GIVEN, SCRATCH, Given, Subject, build_start
from spadnet.cli.evaluate_training import Cases, Trained, read_all, settings_of, train_best
from spadnet.cli.usage import UsageError
from spadnet.data.journal import hash_of
from spadnet.data.task_images import TaskImage
from spadnet.data.tasks import SPLITS, TaskData
from spadnet.evaluate.costs import measured
from spadnet.evaluate.degrade import check_kinds, degrade
from spadnet.evaluate.features import Extractor, Features, data_digest
from spadnet.evaluate.few_shot import few_shot
from spadnet.evaluate.frozen import Targets, read_targets, run_frozen
from spadnet.evaluate.intervals import Outcome
from spadnet.evaluate.quality_study import chosen_cases, mix_images, mix_rows, quality_page
from spadnet.evaluate.records import VERSION, Point, Results
from spadnet.evaluate.segmentation_scores import dice_of, segment_view
from spadnet.evaluate.task_scores import predict_targets
from spadnet.losses.targets import OutputKind

logger = logging.getLogger(__name__)


def run_quality(
    given: Given,
    subjects: Sequence[Subject],
    options: Mapping[str, Any],
    out: Path,
    device: torch.device,
    argv: Sequence[str],
) -> int:
    """Measure a grid of training shares, test shares and labels for each task."""
    rules = check_rules(options["quality"])
    results = Results(out)
    extractors = {}
    if rules["protocol"] != "finetune":
        extractors = build_extractors(given, options, device)
        del extractors["control"]  # it sees images as read, which stay as they are
    found: dict[str, list[Point]] = {}
    for subject in subjects:
        study = _Study(subject, given, extractors, options, rules, out)
        found[subject.name] = study.run(results)
    page = quality_page(
        [(s.name, s.task.kind, found[s.name]) for s in subjects],
        results.records,
        rules=rules,
        headline=f"{given.name}: image quality",
        facts=page_facts(options, argv),
    )
    results.write_page(page)
    return 0


def check_rules(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse settings of the study that cannot work."""
    try:
        check_kinds(rules["kinds"])
    except ValueError as error:
        raise UsageError(f"quality.kinds: {error}") from error
    if rules["protocol"] not in ("knn", "probe", "finetune"):
        raise UsageError(
            f"quality.protocol must be knn, probe or finetune, got {rules['protocol']}"
        )
    shares = rules["shares"]
    if not shares or not all(isinstance(s, int | float) and 0 <= s <= 1 for s in shares):
        raise UsageError(f"quality.shares must be numbers from 0 to 1, got {shares}")
    if not 0 <= rules["strength"] <= 1:
        raise UsageError(f"quality.strength must lie in [0, 1], got {rules['strength']}")
    return dict(rules)


class _Study:
    def __init__(
        self,
        subject: Subject,
        given: Given,
        extractors: Mapping[str, Extractor],
        options: Mapping[str, Any],
        rules: Mapping[str, Any],
        out: Path,
    ) -> None:
        self.subject = subject
        self.given = given
        self.extractors = extractors
        self.options = options
        self.rules = rules
        self.out = out
        self.degrade = partial(_degrade, kinds=tuple(rules["kinds"]), strength=rules["strength"])
        self.note = [sorted(rules["kinds"]), rules["strength"]]

    def run(self, results: Results) -> list[Point]:
        """Compute what is missing; gives all points, those of one training after each other."""
        subject, protocol = self.subject, str(self.rules["protocol"])
        names = list(self.extractors) if protocol != "finetune" else [GIVEN, SCRATCH]
        done: list[Point] = []
        total = len(subject.task.of("train"))
        for name in names:
            for amount in subject.amounts:
                for seed in self.options["seeds"]:
                    few = few_shot(subject.task, amount, seed=seed)
                    for share in self.rules["shares"]:
                        points = [
                            self._point(name, str(amount), seed, share, test)
                            for test in self.rules["shares"]
                        ]
                        done += points
                        if all(results.outcome(point) is not None for point in points):
                            continue
                        with measured() as cost:
                            outcomes, facts = self._outcomes(name, few, seed, share)
                        for point, test, outcome in zip(
                            points, self.rules["shares"], outcomes, strict=True
                        ):
                            extra = {
                                "train_degraded": share,
                                "test_degraded": test,
                                "amount": str(amount),
                                "num_train": len(few.of("train")),
                                "num_test": len(outcome.values),
                                **facts,
                            }
                            results.add(
                                point,
                                subject.task.kind,
                                outcome,
                                cost,
                                share=len(few.of("train")) / total,
                                extra=extra,
                                draws=self.options["draws"],
                            )
                        logger.info(
                            "%s: %s, %s labels, seed %d, %g %% degraded in training: %.1f s",
                            subject.name,
                            name,
                            amount,
                            seed,
                            100 * share,
                            cost["seconds"],
                        )
        return done

    def _point(self, name: str, amount: str, seed: int, share: float, test: float) -> Point:
        data = data_digest(self.subject.task, self.subject.rule, self.note)
        if self.rules["protocol"] == "finetune":
            settings = settings_of(self.subject, seed=seed)
            kept = ("model", "data", "optim", "recipe", "trainer", "validate")
            rules = {key: settings[key] for key in kept}
            marks = hash_of([data, self.given.digest, rules, VERSION])
        else:
            marks = hash_of([data, self.extractors[name].digest, self.options["cells"], VERSION])
        protocol = f"quality-{self.rules['protocol']}"
        label = f"{amount}, degraded {100 * share:g}% in training and {100 * test:g}% in test"
        return Point(self.subject.name, name, protocol, label, seed, marks)

    def _outcomes(
        self, name: str, few: TaskData, seed: int, share: float
    ) -> tuple[list[Outcome], dict[str, Any]]:
        if self.rules["protocol"] == "finetune":
            return self._trained(name, few, seed, share)
        clean, worse = self.features[name], self.worse[name]
        mixed = {
            split: mix_rows(clean, worse, split, self._chosen(split, share, seed))
            for split in ("train", "val")
        }
        tests = [
            mix_rows(clean, worse, "test", self._chosen("test", test, seed))
            for test in self.rules["shares"]
        ]
        outcomes, fitted = run_frozen(
            str(self.rules["protocol"]),
            self.subject.task,
            clean._replace(values={**clean.values, **mixed}),
            self.targets,
            few=few,
            seed=seed,
            cells=self.options["cells"],
            tests=tests,
        )
        return outcomes, {"trainable_parameters": fitted.num_trained}

    def _trained(
        self, name: str, few: TaskData, seed: int, share: float
    ) -> tuple[list[Outcome], dict[str, Any]]:
        subject = self.subject
        settings = settings_of(subject, seed=seed)
        model = build_start(self.given, name, subject, settings)
        mixed = {
            split: mix_images(
                getattr(self.cases, split), self._chosen(split, share, seed), self.degrade
            )
            for split in ("train", "val")
        }
        cases = Cases(mixed["train"], mixed["val"], [])
        folder = self.out / "training" / hash_of([subject.name, name, seed, share])
        trained = train_best(model, few, subject, cases, seed=seed, folder=folder)
        outcomes = []
        for test in self.rules["shares"]:
            images = mix_images(self.cases.test, self._chosen("test", test, seed), self.degrade)
            outcomes.append(self._test(trained, images))
        return outcomes, {"trainable_parameters": trained.num_trained, "best_step": trained.step}

    def _test(self, trained: Trained, images: Sequence[TaskImage]) -> Outcome:
        task = self.subject.task
        if trained.window is not None:
            rows = [
                dice_of(
                    segment_view(
                        trained.model, case.image, case.degree, trained.window, axis=case.axis
                    ),
                    case.target,
                    len(task.classes),
                )
                for case in images
            ]
            return Outcome(np.array(rows), None)
        found = predict_targets(
            trained.model,
            images,
            kind=cast(OutputKind, task.kind),
            flips=self.subject.settings["validate"]["flips"],
            **trained.statistics._asdict(),
        )
        return Outcome(found.values, found.target)

    def _chosen(self, split: str, share: float, seed: int) -> Tensor:
        assert split in SPLITS
        count = sum(case.split == split for case in self.subject.task.cases)
        return chosen_cases(count, share, seed=seed)

    @cached_property
    def features(self) -> dict[str, Features]:
        size = self.options["batch_size"]
        return features_of(self.subject, self.extractors, self.out, batch_size=size)

    @cached_property
    def worse(self) -> dict[str, Features]:
        return features_of(
            self.subject,
            self.extractors,
            self.out,
            batch_size=self.options["batch_size"],
            change=self.degrade,
            note=self.note,
        )

    @cached_property
    def targets(self) -> Targets:
        return read_targets(self.subject.task, self.features[THUMBNAIL], self.subject.rule)

    @cached_property
    def cases(self) -> Cases:
        return read_all(self.subject, self.given.model.in_chans, test_maps=True)


def _degrade(
    image: Tensor, spacing: Any, key: str, *, kinds: Sequence[str], strength: float
) -> Tensor:
    return degrade(image, spacing, key=key, kinds=kinds, strength=strength)
