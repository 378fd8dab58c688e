"""The events that are ingested while the process is killed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
