"""Which degrees and which images each step sees: pure functions of the seed and the step."""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from spadnet.spacing import MAX_DEGREE

_DEGREES, _CROPS = 0, 1  # separate streams of random numbers


class Shared(Protocol):
    """Data of which each of several processes draws its part of every micro-batch."""

    rank: int
    world_size: int


SharedData = TypeVar("SharedData", bound=Shared)


def part_of_rank(data: SharedData, rank: int, world_size: int) -> SharedData:
    """The same data for one of several processes.

    Raises:
        ValueError: If there is no such process.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
    part = copy.copy(data)
    part.rank, part.world_size = rank, world_size
    return part


def step_rng(seed: int, step: int, *, part: int, sample: int) -> np.random.Generator:
    """Random numbers of one sample: a counter-based generator, so no draw precedes another.

    Args:
        seed: Of the training.
        step: Optimiser step.
        part: Micro-batch within the step.
        sample: Crop within the micro-batch; -1 for what the crops share.
    """
    return _rng(seed, step, part, sample + 1, stream=_CROPS)


def degrees_of_step(
    seed: int,
    step: int,
    *,
    degrees: Sequence[int],
    per_step: int,
    flat_share: float | None = None,
) -> tuple[int, ...]:
    """Degrees of the micro-batches of one step; all different, and all occur equally often.

    Steps go through the degrees in rounds, each in another random order.

    Args:
        seed: Of the training.
        step: Optimiser step.
        degrees: Degrees that there are.
        per_step: Micro-batches per step; where there are fewer degrees, so many.
        flat_share: Share of micro-batches of degree 5, exact in the long run; the other degrees
            share the rest, and a step may hold a degree more than once. By default degree 5 is
            as frequent as any other.

    >>> sorted(degrees_of_step(0, 0, degrees=range(6), per_step=3)
    ...        + degrees_of_step(0, 1, degrees=range(6), per_step=3))
    [0, 1, 2, 3, 4, 5]
    """
    if flat_share is not None:
        return _with_flat_share(seed, step, degrees, per_step, flat_share)
    count = min(per_step, len(degrees))
    steps_per_round = -(-len(degrees) // count)
    turn, place = divmod(step, steps_per_round)
    order = _rng(seed, turn, 0, 0, stream=_DEGREES).permutation(len(degrees)).tolist()
    # A last step that lacks degrees takes the first ones of the round again.
    order += order[: steps_per_round * count - len(order)]
    return tuple(degrees[index] for index in order[place * count : (place + 1) * count])


def _with_flat_share(
    seed: int, step: int, degrees: Sequence[int], per_step: int, flat_share: float
) -> tuple[int, ...]:
    others = [degree for degree in degrees if degree != MAX_DEGREE]
    phase = _rng(seed, 0, 1, 0, stream=_DEGREES).random()
    drawn = []
    for place in range(step * per_step, (step + 1) * per_step):
        before, after = (math.floor(n * flat_share + phase) for n in (place, place + 1))
        if after > before:
            drawn.append(MAX_DEGREE)
            continue
        turn, rest = divmod(place - before, len(others))
        order = _rng(seed, turn, 2, 0, stream=_DEGREES).permutation(len(others))
        drawn.append(others[int(order[rest])])
    return tuple(drawn)


def balanced_weights(
    sets: Sequence[str], *, power: float = 0.5, set_weights: dict[str, float] | None = None
) -> list[float]:
    """Weight of each image such that a set of n images counts as ``n ** power``.

    Args:
        sets: The data set that each image belongs to.
        power: 1 weighs images alike, 0 sets; 0.5 is the square root.
        set_weights: Factor per set; 1 where a set is not named.

    Raises:
        ValueError: If the power or a factor is negative or not finite.

    >>> balanced_weights(["a", "a", "a", "a", "b"])
    [0.5, 0.5, 0.5, 0.5, 1.0]
    """
    count = Counter(sets)
    factor = set_weights or {}
    if not 0 <= power < math.inf:
        raise ValueError(f"set_power must be finite and not negative, got {power}")
    for name, value in factor.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"the weight of {name} must be finite and not negative, got {value}")
    return [factor.get(name, 1.0) * count[name] ** (power - 1) for name in sets]


def _rng(seed: int, step: int, part: int, sample: int, *, stream: int) -> np.random.Generator:
    # The generator counts in the first word; the others say whose numbers these are.
    bits = np.random.Philox(key=[seed % (1 << 64), stream], counter=[0, sample, part, step])
    return np.random.Generator(bits)
