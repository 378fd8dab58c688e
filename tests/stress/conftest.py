"""What the stress tests need beside Python: tools and cores.

A machine without one of the tools leaves their tests out and says which; in CI (`CI=true`) nothing is left out.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"


def _leave_out(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """``tool("spin")``: the path of the program."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            _leave_out(f"{name} is not installed")
        return str(path)

    return find


@pytest.fixture
def _two_cores() -> None:
    """For what only shows when two cores see each other's stores late."""
    if len(os.sched_getaffinity(0)) < 2:
        _leave_out("this process may use one core only")


@pytest.fixture(scope="session")
def sources() -> Path:
    """The headers of the kernels."""
    return SOURCES
