"""How many labels: what a share is, and that small ones are part of large ones."""

from collections import Counter
from pathlib import Path

import pytest

from spadnet.data.tasks import Case, TaskData
from spadnet.evaluate.few_shot import few_shot, parse_amount


def task(kind: str = "classification", count: int = 40) -> TaskData:
    is_map = kind == "segmentation"
    cases = [
        Case(
            f"c{i}",
            (Path("a.png"),),
            Path("b.png") if is_map else (float(i % 4 == 0),),
            "train" if i < count - 8 else "test",
        )
        for i in range(count)
    ]
    return TaskData("x", kind, ("a", "b"), cases)  # type: ignore[arg-type]


def keys(found: TaskData) -> set[str]:
    return {case.key for case in found.of("train")}


def test_amounts_are_nested_and_stratified() -> None:
    whole = task()
    for texts in (("10%", "50%", "100%"), (1, 3, 6)):
        chosen = [few_shot(whole, parse_amount(text), seed=3) for text in texts]
        assert keys(chosen[0]) < keys(chosen[1]) < keys(chosen[2])
        assert all(len(one.of("test")) == 8 for one in chosen)
    five = few_shot(whole, parse_amount(5), seed=0)
    assert Counter(case.target for case in five.of("train")) == {(0.0,): 5, (1.0,): 5}
    assert keys(five) != keys(few_shot(whole, parse_amount(5), seed=1))
    assert len(keys(few_shot(whole, parse_amount("1%"), seed=0))) == 2  # one of each class


def test_of_label_maps_a_number_is_cases() -> None:
    assert len(keys(few_shot(task("segmentation"), parse_amount(3), seed=0))) == 3
    assert len(keys(few_shot(task("segmentation"), parse_amount(99), seed=0))) == 32


@pytest.mark.parametrize("text", ["0%", "101%", "ten", 0, -1, True, "5", 1.5])
def test_other_amounts_are_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match="shares are percentages"):
        parse_amount(text)
