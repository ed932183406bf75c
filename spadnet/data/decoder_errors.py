"""What decoders complain of, in words: ITK's messages are long and name its own sources."""

import re

from spadnet.data.image import one_line

_CLUES = {
    "Unable to determine ImageIO reader": "not an image, or too damaged to tell",
    "determinant": "the direction matrix is degenerate",
    "irection": "the direction matrix is degenerate",
    "memory": "too large for the memory",
    "No such file": "truncated or damaged",
    "PNG critical error": "truncated or damaged",
    "fread got only": "truncated",
    "Cannot read requested file": "a file of it is truncated or damaged",
    "eading file": "truncated or damaged",
    "eading the row": "truncated or damaged",
    "read error": "truncated or damaged",
}


def reason_of(error: BaseException) -> str:
    """What went wrong, on one line.

    Args:
        error: As SimpleITK or NumPy raised it.
    """
    whole, text = str(error), one_line(error)
    if found := re.search(r"expected \d+ bytes but received \d+", text):
        return f"truncated: {found[0]}"
    if found := re.search(r"change spacing from .* to \[(.*)\]", text):
        return f"spacing {found[1].replace(', ', ' x ')} mm must be positive and finite"
    for clue, reason in _CLUES.items():
        if clue in whole:
            return reason
    return re.sub(r"^.*(ITK ERROR:|sitk::ERROR:)\s*|\w+\(0x[0-9a-f]+\):?\s*", "", text)
