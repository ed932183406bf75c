"""Keep Lightning's hints off the terminal that do not apply to how spadnet uses it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # it needs no state: see StepDataModule
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Consider setting `persistent_workers=True`.*",
    ".*module.*in eval mode at the start of training.*",
    ".*LeafSpec.*",
    ".*returned a view tensor.*",  # nothing changes the model's output in place
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Show of Lightning what is unexpected, while a trainer is built and runs."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield
