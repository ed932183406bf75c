"""Settings shared by all tests: one thread, a fixed seed, and no CUDA test without a device."""

import logging
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)
pytest.register_assert_rewrite("contract")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same global random state, in whatever order they run."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, the tests that need a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _forget_logging_of_the_command_line() -> Iterator[None]:
    """Undo what a test of the command line sets on the package's logger."""
    logger = logging.getLogger("spadnet")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
