"""A sink of files that is killed at every step, recovers, is killed again: what is visible is whole and committed."""

import json

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from sink_runs import CommitLog, DyingStorage, Killed, drive, files_below, staging_directories

from engine.sinks.arrow_ipc_files import arrow_ipc
from engine.sinks.parquet_files import parquet


def chunk(number, *, rows=20):
    """The rows of one epoch for two partitions."""
    return [
        pa.record_batch(
            {
                "id": pa.array(range(number * 1000 + partition * 500, number * 1000 + partition * 500 + rows)),
                "kind": pa.array([("a", "b", None)[index % 3] for index in range(rows)]),
            }
        )
        for partition in range(2)
    ]


CHUNKS = [chunk(0), [chunk(1)[0].slice(0, 0), chunk(1)[1]]]

SINKS = {
    "parquet": lambda path: parquet(path, row_group_rows=8, compression=None),
    "parquet in parts": lambda path: parquet(path, row_group_rows=8, max_file_bytes=1),
    "parquet by kind": lambda path: parquet(path, partition_by="kind"),
    "parquet beside others": lambda path: parquet(path, mode="append"),
    "arrow": arrow_ipc,
}


def ids_in(path):
    """The ids of all visible files; opening each proves it whole."""
    found = []
    for name in files_below(path):
        if name.endswith(".parquet"):
            found += pq.ParquetFile(f"{path}/{name}").read(["id"]).column("id").to_pylist()
        else:
            with ipc.open_file(f"{path}/{name}") as reader:
                found += reader.read_all().column("id").to_pylist()
    return sorted(found)


def ids_of(numbers):
    return sorted(value for number in numbers for rows in CHUNKS[number] for value in rows.column("id").to_pylist())


def attempt(make, path, log, calls):
    """One life of a process; False if it was killed."""
    sink = make(path)
    store = sink.storage = DyingStorage(calls)
    try:
        drive(sink, log, CHUNKS)
    except Killed:
        return False
    finally:
        store.dead = True
        log.commits = json.loads(json.dumps(log.commits))
    return True


def check_visible(path, log):
    """Only committed rows are to be seen: all of them, but for the commit that is under way."""
    committed = [number for _, number, _ in log.commits]
    final = [number for epoch, number, _ in log.commits if epoch <= log.final]
    seen = set(ids_in(path))
    assert set(ids_of(final)) <= seen <= set(ids_of(committed))


@pytest.mark.parametrize("make", SINKS.values(), ids=SINKS.keys())
def test_killed_at_every_step(make, tmp_path):
    for calls in range(1000):
        path = tmp_path / str(calls) / "out"
        path.parent.mkdir()
        log = CommitLog()
        whole = attempt(make, path, log, calls)
        check_visible(path, log)
        assert attempt(make, path, log, 1000)
        assert ids_in(path) == ids_of(range(len(CHUNKS)))
        assert staging_directories(path) == []
        if whole:
            break
    assert calls > 20


def test_killed_again_in_every_recovery(tmp_path):
    make = SINKS["parquet by kind"]
    kills = 0
    for calls in range(0, 1000, 9):
        path = tmp_path / str(calls) / "out"
        path.parent.mkdir()
        log = CommitLog()
        if attempt(make, path, log, calls):
            break
        for more in range(0, 1000, 3):  # no life is long enough, but each a little longer than the one before
            if attempt(make, path, log, more):
                break
            kills += 1
            check_visible(path, log)
        assert ids_in(path) == ids_of(range(len(CHUNKS)))
        assert staging_directories(path) == []
    assert kills > 50
