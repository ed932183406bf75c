"""Images that are kept out of a training, to see what it has learnt."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

from spadnet.data.volume import Volume

MOST = 20  # at most one image in so many is kept out
_FRAME = re.compile(r"\[\d+\]$")  # of a 4D file


def keep_out(volumes: Sequence[Volume], *, per_degree: int) -> tuple[list[Volume], list[Volume]]:
    """Split images into those to train on and some of each degree that no step may see.

    The choice depends on the images' names alone, not on their order or a seed, so that both stages
    keep out the same ones. The frames of a 4D file stay together.

    Args:
        volumes: Images.
        per_degree: Files to keep out of each degree; at most one in twenty is.

    Returns:
        Images to train on, and images kept out; the latter may be none.
    """
    files: dict[int, set[str]] = defaultdict(set)
    for volume in volumes:
        files[volume.spacing.degree()].add(_file(volume))
    out: set[str] = set()
    for names in files.values():
        out |= set(sorted(names, key=_lot)[: min(per_degree, len(names) // MOST)])
    train = [volume for volume in volumes if _file(volume) not in out]
    return train, [volume for volume in volumes if _file(volume) in out]


def _file(volume: Volume) -> str:
    return _FRAME.sub("", volume.key)


def _lot(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
