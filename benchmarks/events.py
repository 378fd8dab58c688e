"""The rows that every benchmark works on, as batches and as a file."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

__all__ = ["write_events"]


def write_events(path: Path, events: Iterable[pa.RecordBatch]) -> None:
    """Write one uncompressed Arrow IPC file, without the column that tells re-deliveries: 98 bytes a row."""
    writer = None
    with pa.OSFile(str(path), "wb") as file:
        for batch in events:
            rows = batch.drop_columns(["delivery"])
            if writer is None:
                writer = pa.ipc.new_file(file, rows.schema)
            writer.write_batch(rows)
        if writer is not None:
            writer.close()
