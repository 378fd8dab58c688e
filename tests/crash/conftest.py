"""The events that are ingested while the process is killed, and a small job that is killed at exact places.

A machine without strace leaves out the tests that need it; in CI (`CI=true`) nothing is left out.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crash.nursery_of_kills import Zygote
from crash.system_calls import can_attach
from crash.victim import Victim

from engine.testing.workload import generate

WHOLE_FILE = Path(__file__).parents[3] / "shared" / "data" / "git_file_events.parquet"
GENERATED_ROWS = 347_220


@pytest.fixture(scope="session")
def events() -> pa.Table:
    """The whole file of real events where it lies beside the sources, else as many generated ones.

    The slice in the package would be too short: sealing needs more keys than fit in the smallest budget.
    """
    if WHOLE_FILE.exists():
        return pq.read_table(WHOLE_FILE)
    batches = generate(GENERATED_ROWS, seed=3, keys=30_000, redeliveries=0.0)
    return pa.Table.from_batches(batches).drop_columns(["delivery"])


@pytest.fixture
def system_calls(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--system-calls"))


@pytest.fixture
def strace() -> str:
    """The path of the program."""
    path = shutil.which("strace")
    missing = "strace is not installed" if path is None else None if can_attach(path) else "strace may trace nothing"
    if missing is not None and os.environ.get("CI"):
        pytest.fail(missing)
    if missing is not None:
        pytest.skip(missing)
    assert path is not None
    return path


@pytest.fixture
def sink() -> str:
    """Where the victim's rows go; a test may be parametrized by it."""
    return "parquet"


@pytest.fixture
def victim(tmp_path: Path, strace: str, sink: str) -> Iterator[Victim]:
    with Zygote(tmp_path / "zygote.log") as zygote:
        yield Victim(tmp_path, zygote, strace, sink)
