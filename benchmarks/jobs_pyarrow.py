"""The job as a careful user writes it by hand: pyarrow batch by batch, with a Python set of the ids seen."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from contest import Contender
from jobs_engine import scaled

PARTITIONS = 8
ROW_GROUP_ROWS = 131_072


def to_files(source: str, directory: str, format: str) -> Contender:
    """The job to files; nothing is committed, nothing synced."""

    def run() -> None:
        Path(directory).mkdir(parents=True)
        seen: set[bytes] = set()
        numbers: dict[str, int] = {}
        with pa.OSFile(source) as file, pa.ipc.open_file(file) as reader:
            writers = [_Writer(Path(directory), part, format, reader.schema) for part in range(PARTITIONS)]
            for index in range(reader.num_record_batches):
                for part, rows in enumerate(_split(scaled(_fresh(reader.get_batch(index), seen)), numbers)):
                    writers[part].write(rows)
            for writer in writers:
                writer.close()

    return Contender("pyarrow, set", run, lambda nothing: None)


def _fresh(batch: pa.RecordBatch, seen: set[bytes]) -> pa.RecordBatch:
    kept = []
    for row, event in enumerate(batch.column("event_id").to_pylist()):
        if event not in seen:
            seen.add(event)
            kept.append(row)
    return batch if len(kept) == batch.num_rows else batch.take(pa.array(kept, pa.int32()))


def _split(batch: pa.RecordBatch, numbers: dict[str, int]) -> Iterator[pa.RecordBatch]:
    keys = batch.column("key").dictionary_encode()
    names = keys.dictionary.to_pylist()
    for name in names:
        if name not in numbers:
            numbers[name] = crc32(name.encode()) % PARTITIONS
    part = np.fromiter((numbers[name] for name in names), np.int8, len(names))[keys.indices.to_numpy()]
    order = np.argsort(part, kind="stable")
    cuts = np.searchsorted(part[order], np.arange(PARTITIONS + 1))
    rows = batch.take(pa.array(order))
    return (rows.slice(start, stop - start) for start, stop in pairwise(cuts))


class _Writer:
    """One file of a partition, written in pieces of a row group."""

    def __init__(self, directory: Path, part: int, format: str, schema: pa.Schema) -> None:
        path = str(directory / f"part-{part}.{'parquet' if format == 'parquet' else 'arrow'}")
        self._writer: Any = (
            pq.ParquetWriter(path, schema, compression="snappy")
            if format == "parquet"
            else pa.ipc.new_file(path, schema)
        )
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, rows: pa.RecordBatch) -> None:
        self._held.append(rows)
        self._rows += rows.num_rows
        if self._rows >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held).combine_chunks())
        self._held, self._rows = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()
