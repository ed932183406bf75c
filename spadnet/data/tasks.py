"""What a fine-tuning learns from: cases with their targets and splits, whatever listed them.

``task_forms`` reads the descriptions that users have; here is the form all of them become, and the
checks that do not need a pixel.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from spadnet.data.image import file_name
from spadnet.near_names import suggest

logger = logging.getLogger(__name__)

Kind = Literal["classification", "multi_label", "ordinal", "regression", "segmentation"]
KINDS: tuple[str, ...] = get_args(Kind)
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SHOWN = 100  # names in one message
_PATIENT = re.compile(
    r"(?P<id>(?<![a-z])sub-[a-z0-9]+|(?:patient|subject|person|pat|case)[-_ ]?\d+|^\D*\d{2,})", re.I
)


class Case(NamedTuple):
    """One labelled image.

    Attributes:
        key: Names the case; no two are alike.
        images: Its files, one for all channels or one for each.
        target: File of the label map; or the class by number, one 0 or 1 per label, or values.
        split: ``"train"``, ``"val"`` or ``"test"``.
        patient: Whose image it is; None where nothing tells.
        row: Where the file is a table of images: array and row.
    """

    key: str
    images: tuple[Path, ...]
    target: Path | tuple[float, ...]
    split: Split
    patient: str | None = None
    row: tuple[str, int] | None = None


class TaskData(NamedTuple):
    """A task's cases and what their targets mean.

    Attributes:
        name: Of the data set.
        kind: What is predicted.
        classes: Names of classes or values in order; those of label maps by voxel value.
        cases: All of them.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    cases: list[Case]

    def of(self, split: Split) -> list[Case]:
        """Cases of a split."""
        return [case for case in self.cases if case.split == split]


def known_kind(kind: str) -> Kind:
    """Check the name of a kind of task."""
    if kind not in KINDS:
        raise ValueError(f"unknown task {kind!r}{suggest(kind, KINDS)}")
    return kind  # type: ignore[return-value]


def known_split(split: str, *, where: str) -> Split:
    """Bring the names that people give to splits to ours."""
    known: dict[str, Split] = {name: name for name in SPLITS}
    known |= {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
    if split.strip().lower() not in known:
        raise ValueError(f"{where}: unknown split {split!r}{suggest(split, known)}")
    return known[split.strip().lower()]


def patient_of(key: str, pattern: str | None = None) -> str | None:
    """Find whose image it is in a file's name.

    >>> patient_of("sub-012_ses-1_T1w"), patient_of("patient003_frame01"), patient_of("left knee")
    ('sub-012', 'patient003', None)

    Args:
        key: Name of the case; folders do not count.
        pattern: Regular expression whose first group, or all of it, is the patient.
    """
    found = (_PATIENT if pattern is None else re.compile(pattern)).search(key.rpartition("/")[2])
    if found is None:
        return None
    return found[1] if found.re.groups else found[0]


def check_task(task: TaskData) -> TaskData:
    """Refuse a task that cannot be learnt or scored; warn of patients in two splits.

    Raises:
        ValueError: If files are missing (all are named), names repeat, training or validation is
            empty, the training set has one class, or a class is not among those declared.
    """
    paths = {path for case in task.cases for path in _files(case)}
    if missing := sorted(file_name(path) for path in paths if not path.exists()):
        raise ValueError(f"{task.name}: {_count(missing, 'file')} missing: {_listed(missing)}")
    repeated = [key for key, count in Counter(case.key for case in task.cases).items() if count > 1]
    if repeated:
        raise ValueError(f"{task.name}: listed more than once: {_listed(repeated)}")
    for split in ("train", "val"):
        if not any(case.split == split for case in task.cases):
            raise ValueError(f"{task.name}: the split {split!r} is empty")
    _check_targets(task)
    if shared := patients_in_two_splits(task.cases):
        logger.warning(
            "%s: %s in more than one split, so that scores flatter: %s",
            task.name,
            _count(shared, "patient"),
            _listed(shared),
        )
    if task.kind in ("classification", "ordinal", "multi_label"):
        warn_of_absent(task.name, [name for name, n in class_counts(task).items() if n == 0])
    return task


def warn_of_absent(name: str, absent: Sequence[str]) -> None:
    """Warn of classes that no training case has.

    Args:
        name: Of the data set.
        absent: The classes.
    """
    if absent:
        logger.warning("%s: no training case has %s", name, _listed(absent))


def _check_targets(task: TaskData) -> None:
    if task.kind == "segmentation":
        if bad := [case.key for case in task.cases if not isinstance(case.target, Path)]:
            raise ValueError(f"{task.name}: no label map for {_listed(bad)}")
        return
    width = len(task.classes) if task.kind in ("multi_label", "regression") else 1
    for case in task.cases:
        if isinstance(case.target, Path) or len(case.target) != width:
            raise ValueError(f"{case.key}: a {task.kind} target needs {width} values")
        if not np.isfinite(case.target).all():
            raise ValueError(f"{case.key}: the target {case.target} is not finite")
        if task.kind == "multi_label" and not set(case.target) <= {0, 1}:
            raise ValueError(f"{case.key}: labels must be 0 or 1, got {case.target}")
        if task.kind in ("classification", "ordinal"):
            value = case.target[0]
            if value not in range(len(task.classes)):
                raise ValueError(
                    f"{case.key}: class {value:g} is not among the {len(task.classes)} declared"
                )
    seen = {case.target for case in task.cases if case.split == "train"}
    if len(seen) == 1:
        (only,) = seen
        assert isinstance(only, tuple)
        named = task.kind in ("classification", "ordinal")
        what = task.classes[int(only[0])] if named else ", ".join(f"{value:g}" for value in only)
        raise ValueError(f"{task.name}: all training cases are {what!r}; there is nothing to learn")


def patients_in_two_splits(cases: Iterable[Case]) -> list[str]:
    """Patients whose images are in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.patient is not None:
            splits[case.patient].add(case.split)
    return sorted(patient for patient, found in splits.items() if len(found) > 1)


def hold_out(cases: Sequence[Case], *, share: float, seed: int = 0) -> list[Case]:
    """Turn a share of the training cases into validation, whole patients, each class alike.

    Args:
        cases: Any; where one is for validation already, nothing changes.
        share: Of the training patients, in (0, 1).
        seed: Decides which.
    """
    if any(case.split == "val" for case in cases):
        return list(cases)
    if not 0 < share < 1:
        raise ValueError(f"the share held out for validation must lie in (0, 1), got {share}")
    strata: dict[object, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for case in cases:
        owner = case.patient or case.key
        if case.split == "train" and owner not in seen:
            seen.add(owner)
            strata[None if isinstance(case.target, Path) else case.target].append(owner)
    rng = np.random.default_rng(seed)
    if len(strata) > sum(map(len, strata.values())) // 2:  # values, hardly any of them alike
        strata = defaultdict(
            list, {None: [owner for owners in strata.values() for owner in owners]}
        )
    chosen: set[str] = set()
    for stratum in sorted(strata, key=repr):
        owners = sorted(strata[stratum])
        count = max(round(share * len(owners)), 1) if len(owners) > 1 else 0
        chosen |= {owners[index] for index in rng.permutation(len(owners))[:count]}
    return [
        case._replace(split="val")
        if case.split == "train" and (case.patient or case.key) in chosen
        else case
        for case in cases
    ]


def rehearsed(task: TaskData, *, share: float, seed: int = 0) -> TaskData:
    """Put validation in the place of the test split, so that choices can be made without that.

    What a training or a probe chooses by is then a part of the training cases.

    Args:
        task: With cases for validation.
        share: Of the training patients that become validation, in (0, 1).
        seed: Decides which.
    """
    cases = [
        case._replace(split="test") if case.split == "val" else case
        for case in task.cases
        if case.split != "test"
    ]
    return task._replace(cases=hold_out(cases, share=share, seed=seed))


def subsample(cases: Sequence[Case], *, share: float, seed: int = 0) -> list[Case]:
    """Keep a share of the training cases, at least one of each class; other splits stay whole.

    Args:
        cases: Any.
        share: Of the training cases, in (0, 1].
        seed: Decides which; a smaller share of the same seed is part of a larger one.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of training cases must lie in (0, 1], got {share}")
    strata: dict[object, list[str]] = defaultdict(list)
    for case in cases:
        if case.split == "train":
            strata[None if isinstance(case.target, Path) else case.target].append(case.key)
    rng = np.random.default_rng(seed)
    kept: set[str] = set()
    for stratum in sorted(strata, key=repr):
        keys = sorted(strata[stratum])
        order = rng.permutation(len(keys))
        kept |= {keys[index] for index in order[: max(round(share * len(keys)), 1)]}
    return [case for case in cases if case.split != "train" or case.key in kept]


def class_counts(task: TaskData) -> Mapping[str, int]:
    """Training cases of each class, or with each label."""
    counts = dict.fromkeys(task.classes, 0)
    for case in task.of("train"):
        assert not isinstance(case.target, Path)
        if task.kind == "multi_label":
            for name, value in zip(task.classes, case.target, strict=True):
                counts[name] += int(value)
        else:
            counts[task.classes[int(case.target[0])]] += 1
    return counts


def _files(case: Case) -> tuple[Path, ...]:
    return (*case.images, case.target) if isinstance(case.target, Path) else case.images


def _count(names: Sequence[str], what: str) -> str:
    return f"1 {what} is" if len(names) == 1 else f"{len(names)} {what}s are"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
