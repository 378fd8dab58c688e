"""What readers find in the output of a job, whichever sink it has."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
from crash import model

from engine import Log


def rows_in(sink: str, output: Path, like: pa.Schema) -> pa.Table:
    """All rows with the partition of each, where the sink tells it; ``like``: the columns and types of the job."""
    match sink:
        case "log":
            return _rows_of_log(output)
        case "sqlite":
            return _rows_of_table(output, like)
    return model.read_in_order(output)


def files_in(sink: str, output: Path) -> dict[str, bytes]:
    """The files that hold those rows, with their content."""
    match sink:
        case "log":
            found = sorted(output.glob("partition-*/*.seg"))
        case "sqlite":
            found = [output]
        case _:
            found = model.files_of(output)
    return {str(path): path.read_bytes() for path in found}


def _rows_of_log(output: Path) -> pa.Table:
    tables = []
    with Log(output, write=False) as log:
        for partition in range(log.partitions):
            for rows in log.read(partition=partition):
                numbers = pa.array([partition] * rows.num_rows, pa.int32())
                tables.append(pa.Table.from_batches([rows]).append_column("partition", numbers))
    return pa.concat_tables(tables)


def _rows_of_table(output: Path, like: pa.Schema) -> pa.Table:
    names = ", ".join(like.names)
    with closing(sqlite3.connect(output)) as database:
        rows = database.execute(f"SELECT {names} FROM events ORDER BY rowid").fetchall()
    columns = [pa.array(values) for values in zip(*rows, strict=True)]
    cast = [column.cast(field.type) for column, field in zip(columns, like, strict=True)]
    table = pa.table(cast, names=like.names)
    return table.append_column("partition", pa.array([0] * table.num_rows, pa.int32()))
