"""The report of ``spadnet evaluate``: what the points say, as one page and as plain records."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spadnet.cli.evaluate_tasks import GIVEN, RECIPE, SCRATCH, Given, Subject
from spadnet.data.atomic import write_atomic
from spadnet.evaluate.duplicates import Duplicate
from spadnet.evaluate.records import Point, Results
from spadnet.evaluate.referee import build_tables
from spadnet.evaluate.referee_page import TaskReport, render_referee
from spadnet.train.run_folder import versions

_LEAD = (
    "Each model learns from the same few labels and is scored on the same test cases. All choices "
    "(neighbours, penalty, best step) are made on the validation split, which is never thinned "
    "out; test cases are used for the score alone. Validation and test may differ in "
    "distribution. A cell has the mean over seeds and their standard deviation, the 95 % interval "
    "of resampled test cases, and how much better the given model is on the same cases, with the "
    "p of no difference (not corrected for the number of comparisons)."
)


def write_report(
    out: Path,
    given: Given,
    subjects: Sequence[Subject],
    points: Mapping[str, Sequence[Point]],
    duplicates: Mapping[str, Sequence[Duplicate]],
    results: Results,
    options: Mapping[str, Any],
    argv: Sequence[str],
) -> None:
    """Write ``report.html`` and ``duplicates.json``.

    Args:
        out: Folder of the evaluation.
        given: The measured model.
        subjects: The tasks.
        points: Of each task.
        duplicates: Of each task.
        results: All records.
        options: Of the verb.
        argv: Its command line.
    """
    reports = []
    for subject in subjects:
        outcomes = {}
        for point in points[subject.name]:
            found = results.outcome(point)
            assert found is not None, point
            outcomes[point] = found
        tables = build_tables(
            points[subject.name],
            subject.task.kind,
            outcomes,
            results.records,
            draws=options["draws"],
            measured=GIVEN,
        )
        reports.append(
            TaskReport(subject.name, facts_of(subject), tables, duplicates[subject.name])
        )
    names = {point.model for found in points.values() for point in found}
    page = render_referee(
        reports,
        headline=f"{given.name} on {', '.join(subject.name for subject in subjects)}",
        lead=_LEAD,
        models={n: text for n, text in describe(given, options, names).items() if n in names},
        facts=page_facts(options, argv),
    )
    results.write_page(page)
    listed = {name: [pair._asdict() for pair in pairs] for name, pairs in duplicates.items()}
    write_atomic(out / "duplicates.json", (json.dumps(listed, indent=1) + "\n").encode())


def facts_of(subject: Subject) -> str:
    """A task in one line."""
    task = subject.task
    counts = ", ".join(f"{len(task.of(split))} {split}" for split in ("train", "val", "test"))
    return f"{task.kind}; {counts} cases; {', '.join(task.classes)}"


def describe(given: Given, options: Mapping[str, Any], names: set[str]) -> dict[str, str]:
    """What the models of the tables are."""
    seed = options["seeds"][0]
    found = {
        GIVEN: f"{given.name} from {given.source} ({given.digest})",
        SCRATCH: f"the same with random weights; in frozen protocols those of seed {seed}",
        "hand-made": "histograms of oriented gradients and of intensities",
        "control": "sees only the image's shape, spacing and intensity statistics, and of label "
        "maps where in the image a patch lies: what it reaches needs no look at the anatomy",
    }
    for name in sorted(names - set(found)):
        if name.startswith(f"{RECIPE}:"):
            found[name] = "what the settings of the fine-tuning build, from random weights"
        else:
            found[name] = "outside generalist: a timm model with its ImageNet weights, of planes"
    return found


def page_facts(options: Mapping[str, Any], argv: Sequence[str]) -> dict[str, str]:
    """Seeds, versions and the command."""
    kept = ("spadnet", "torch", "timm", "monai")
    found = {name: str(version) for name, version in versions().items() if name in kept}
    return {
        "seeds": ", ".join(map(str, options["seeds"])),
        "command": shlex.join(["spadnet", "evaluate", *argv]),
        **found,
    }
