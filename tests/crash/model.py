"""What must be true of the output whatever happened to the process: checked from the files alone, without engine."""

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

NAME = re.compile(r"part-(\d{5})-(\d{8})-(\d{2})\.(?:parquet|arrow)")


def files_of(output: Path) -> list[Path]:
    """All files under the output directory by name; nothing else may be there."""
    found = sorted(Path(directory) / name for directory, _, names in os.walk(output) for name in names)
    for path in found:
        assert NAME.fullmatch(path.name), f"{path} is no finished data file"
        assert path.parent == output, f"{path} is in a directory of its own"
    return found


def read_in_order(output: Path) -> pa.Table:
    """The rows of all files in name order, with their partition."""
    tables = []
    for path in files_of(output):
        match = NAME.fullmatch(path.name)
        assert match is not None
        table = pq.ParquetFile(path).read() if path.suffix == ".parquet" else ipc.open_file(path).read_all()
        assert table.num_rows > 0, f"{path} is empty"
        tables.append(table.append_column("partition", pa.array(np.full(table.num_rows, int(match[1]), np.int32))))
    return pa.concat_tables(tables)


def check_exactly_once(output: Path, expected: pa.Table) -> None:
    """Every row of ``expected`` is in the output once, unchanged but for what the map added, and in order per key.

    ``expected``: the rows that must come out, in the order of the input, ``event_id`` and ``delivery`` among the
    columns.
    """
    check_rows(read_in_order(output), expected)


def check_rows(found: pa.Table, expected: pa.Table) -> None:
    """The same of rows that were read, with the ``partition`` of each."""
    assert found.num_rows == expected.num_rows, f"{found.num_rows} rows, expected {expected.num_rows}"
    assert pc.all(pc.equal(pc.binary_length(found["key"]), found["key_bytes"])).as_py(), "the map was not applied"
    check_partitions(found)
    check_same_rows(found, expected)


def check_partitions(found: pa.Table) -> None:
    pairs = found.select(["key", "partition"]).group_by(["key"]).aggregate([("partition", "count_distinct")])
    assert pc.max(pairs["partition_count_distinct"]).as_py() == 1, "a key is in several partitions"


def check_same_rows(found: pa.Table, expected: pa.Table) -> None:
    """Rows of a key leave in the order in which they came: grouped stably by key, both sides must be the same."""
    columns = expected.column_names
    ours, theirs = (stably_by_key(table.select(columns)) for table in (found, expected))
    for name in columns:
        same = pc.all(pc.fill_null(pc.equal(ours[name], theirs[name]), True)).as_py()
        assert same, f'column "{name}" differs, or rows of a key are not in order'


def stably_by_key(table: pa.Table) -> pa.Table:
    position = pa.array(np.arange(table.num_rows))
    order = pc.sort_indices(
        table.append_column("position", position), sort_keys=[("key", "ascending"), ("position", "ascending")]
    )
    return table.take(order)


def distinct_first_deliveries(table: pa.Table) -> pa.Table:
    """What exact dedup for ever leaves: the first row of each event."""
    return table.filter(pc.equal(table["delivery"], 0))


def windowed(table: pa.Table, within: int) -> pa.Table:
    """What dedup leaves that looks back ``within`` rows, every sighting refreshing its key: the plain model."""
    last_seen: dict[bytes, int] = {}
    keep = []
    for position, key in enumerate(table["event_id"].to_pylist()):
        seen = last_seen.get(key)
        keep.append(seen is None or seen < position - within)
        last_seen[key] = position
    return table.filter(pa.array(keep))
