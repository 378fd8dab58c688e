"""What the stress tests need beside Python: tools.

A machine without one of the tools leaves their tests out and says which; in CI (`CI=true`) nothing is left out.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """``tool("spin")``: the path of the program."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None and os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        if path is None:
            pytest.skip(f"{name} is not installed")
        return path

    return find


@pytest.fixture(scope="session")
def sources() -> Path:
    """The headers of the kernels."""
    return SOURCES
