"""Compare spadnet with reference vectors: every group and every case, nothing skipped.

    python tools/compare_numerics.py --reference DIR [--json FILE]

DIR holds ``cases.json`` and one safetensors file per group. Prints one row per group and exits with
1 if anything misses: a difference beyond the tolerance, another shape, an unknown group, a case
without tensors, a tensor that belongs to no case. A folder that cannot be read exits with 2.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from reference_groups import KINDS, Compute, Kind, Settings
from safetensors import SafetensorError
from safetensors.torch import load_file

from spadnet.weights.convert import StateDict


class Report(NamedTuple):
    """Result of one group, or of one case.

    Attributes:
        cases: How many cases there are.
        errors: Largest absolute difference of each tensor compared.
        tolerance: What they may be; None for an unknown group.
        misses: What is wrong, one line each.
    """

    cases: int
    errors: list[float]
    tolerance: float | None
    misses: list[str]

    @property
    def max_error(self) -> float:
        """Largest difference; NaN if any is NaN or nothing was compared."""
        return torch.tensor(self.errors).max().item() if self.errors else math.nan


# What a folder of another form raises where a setting or a weight does not fit.
MISFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def describe(error: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, KeyError):
        return f"no {error}"
    return " ".join(str(error).split())[:300]


def compare_case(compute: Compute, kind: Kind, case: Settings, own: StateDict) -> Report:
    """Run one case on the tensors ``own`` that carry its name."""
    inputs = {key: value for key, value in own.items() if key in kind.inputs}
    absent = kind.inputs - kind.optional - set(inputs)
    if absent:
        raise ValueError(f"no tensors {sorted(absent)}")
    shape = case.get("input_shape")
    if shape is not None and list(inputs["x"].shape) != list(shape):
        raise ValueError(f"x is {list(inputs['x'].shape)}, the case says {shape}")
    outputs = compute(case, inputs)
    misses = [f"no reference for {name}" for name in sorted(set(outputs) - set(own))]
    misses += [f"{name} is not compared" for name in sorted(set(own) - set(inputs) - set(outputs))]
    errors = []
    for name in sorted(outputs.keys() & own.keys()):
        ours, theirs = outputs[name], own[name]
        if ours.ndim == 0 and theirs.numel() == 1:
            ours = ours.reshape(theirs.shape)
        if ours.shape != theirs.shape or ours.numel() == 0:
            misses.append(f"{name} is {list(ours.shape)}, the reference {list(theirs.shape)}")
            continue
        errors.append((ours.double() - theirs.double()).abs().max().item())
        if not errors[-1] <= kind.tolerance:  # NaN misses too
            misses.append(f"{name} differs by {errors[-1]:.2e}")
    return Report(1, errors, kind.tolerance, misses)


@torch.no_grad()
def compare_group(name: str, cases: list[Settings], settings: Settings, file: Path) -> Report:
    """Run all cases of one group."""
    known = re.match(f"({'|'.join(KINDS)})(?![a-z])", name)
    if known is None:
        return Report(len(cases), [], None, ["unknown group"])
    kind = KINDS[known[1]]
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file.name}: {describe(error)}") from error
    try:
        compute = kind.build(settings, tensors)
    except MISFIT as error:
        return Report(len(cases), [], kind.tolerance, [describe(error)])

    by_case: dict[str, StateDict] = {}
    for key, value in tensors.items():
        if not key.startswith(kind.weights):
            case_name, _, tensor_name = key.rpartition(".")
            by_case.setdefault(case_name, {})[tensor_name] = value
    errors: list[float] = []
    misses = [] if cases else ["no cases"]
    for case in cases:
        label = case.get("name", "")
        try:
            report = compare_case(compute, kind, case, by_case.get(label, {}))
        except MISFIT as error:
            misses.append(f"{label}: {describe(error)}")
            continue
        errors += report.errors
        misses += [f"{label}: {miss}" for miss in report.misses]
    named = {case.get("name", "") for case in cases}
    misses += [f"{label}: tensors without a case" for label in sorted(set(by_case) - named)]
    return Report(len(cases), errors, kind.tolerance, misses)


def read_groups(folder: Path) -> dict[str, tuple[list[Settings], Settings]]:
    """Read ``cases.json``: each group's cases and settings.

    Raises:
        ValueError: If the file is not of the expected form.
        OSError: If it cannot be read.
    """
    try:
        groups = json.loads((folder / "cases.json").read_text())
    except ValueError as error:
        raise ValueError(f"cases.json: {error}") from error
    if not isinstance(groups, dict) or not groups:
        raise ValueError("cases.json holds no groups")
    found: dict[str, tuple[list[Settings], Settings]] = {}
    for name, settings in groups.items():
        settings = {"cases": settings} if isinstance(settings, list) else settings
        if not isinstance(settings, dict):
            raise ValueError(f"cases.json: group {name} is neither a list nor an object")
        cases = settings.get("cases", [{}])  # an adapter is one case without a name
        if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
            raise ValueError(f"cases.json: the cases of {name} are not a list of objects")
        found[name] = cases, settings
    return found


def compare_folder(folder: Path) -> dict[str, Report]:
    """Run every group of a folder, including files that ``cases.json`` does not list."""
    groups = read_groups(folder)
    reports = {}
    for name, (cases, settings) in groups.items():
        reports[name] = compare_group(name, cases, settings, folder / f"{name}.safetensors")
    for stem in sorted({file.stem for file in folder.glob("*.safetensors")} - set(groups)):
        reports[stem] = Report(0, [], None, ["not listed in cases.json"])
    return reports


def main() -> int:
    """Compare, print one row per group, return the exit status."""
    parser = argparse.ArgumentParser(description="Compare spadnet with reference vectors.")
    parser.add_argument("--reference", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    arguments = parser.parse_args()
    try:
        reports = compare_folder(arguments.reference)
        if arguments.json:
            figures = {
                name: {
                    "cases": report.cases,
                    "max_error": report.max_error if math.isfinite(report.max_error) else None,
                    "tolerance": report.tolerance,
                    "ok": not report.misses,
                    "misses": report.misses,
                }
                for name, report in reports.items()
            }
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    except (OSError, ValueError) as error:
        print(f"compare_numerics: {arguments.reference}: {describe(error)}", file=sys.stderr)
        return 2
    print(f"{'group':<20} {'cases':>5} {'max error':>10} {'tolerance':>10}")
    for name, report in reports.items():
        tolerance = "-" if report.tolerance is None else f"{report.tolerance:.0e}"
        verdict = "MISS" if report.misses else "ok"
        print(f"{name:<20} {report.cases:>5} {report.max_error:>10.2e} {tolerance:>10}  {verdict}")
    for name, report in reports.items():
        for miss in report.misses:
            print(f"{name}: {miss}", file=sys.stderr)
    return int(any(report.misses for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
