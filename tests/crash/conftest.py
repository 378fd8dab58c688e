"""The events that are ingested while the process is killed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import engine.cli

WHOLE_FILE = Path(__file__).parents[3] / "shared" / "data" / "git_file_events.parquet"
BUNDLED_SLICE = Path(engine.cli.__file__).parent / "sample" / "git_file_events.parquet"


@pytest.fixture(scope="session")
def events() -> pa.Table:
    """The whole file of real events where the sources lie beside it, else the slice of it that is in the package."""
    return pq.read_table(WHOLE_FILE if WHOLE_FILE.exists() else BUNDLED_SLICE)
