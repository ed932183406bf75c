"""Settings shared by all tests: one thread, a fixed seed, and no CUDA test without a device."""

import logging

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
def _forget_logging_of_the_command_line() -> None:
    """Undo what an earlier test, or a fixture of its module, set on the package's logger."""
    logger = logging.getLogger("spadnet")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
