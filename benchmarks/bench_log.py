"""The durable log: appends that are synced, appends of many writers that share a sync, and reading back.

Beside it a plain file that is written and synced in pieces of the same size: what the disk itself can do. The data
lies in the directory of pytest's temporary files; a disk that is shared or throttled decides these figures.
"""

import os
import shutil
import tempfile
import threading

import numpy as np
import pyarrow as pa
import pytest
from contest import Contender

from engine import Log

WRITERS = 32
SMALL_BELOW_ROWS = 1_000_000
SHAPES = [("4 MiB", 4 << 20, 1), ("1 MiB", 1 << 20, 1), ("16 KiB", 16 << 10, WRITERS)]


def batch_of(size_bytes):
    return pa.record_batch({"value": np.random.default_rng(1).integers(0, 1 << 62, size=size_bytes // 8)})


def appended(directory, batch, count, writers):
    with Log(os.path.join(directory, "log")) as log:

        def write():
            for _ in range(count // writers):
                log.append(batch)

        threads = [threading.Thread(target=write) for _ in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return log.end()


def synced(directory, batch, count):
    data = memoryview(batch.column(0).buffers()[1])
    with open(os.path.join(directory, "plain"), "wb", buffering=0) as file:
        for _ in range(count):
            file.write(data)
            os.fdatasync(file.fileno())
    return count * batch.num_rows


class Room:
    """A directory that is gone after the round."""

    def __enter__(self):
        self.directory = tempfile.mkdtemp()
        return self.directory

    def __exit__(self, *_):
        shutil.rmtree(self.directory)


def in_a_room(work):
    def run():
        with Room() as directory:
            return work(directory)

    return run


@pytest.mark.parametrize(("name", "size_bytes", "writers"), SHAPES)
def bench_append(contest, size, name, size_bytes, writers):
    count = {"4 MiB": 60, "1 MiB": 120, "16 KiB": 3_200}[name] // (1 if size.rows >= SMALL_BELOW_ROWS else 10)
    batch = batch_of(size_bytes)
    contenders = [
        Contender("engine", in_a_room(lambda directory: appended(directory, batch, count, writers)), int),
        Contender("plain file, synced", in_a_room(lambda directory: synced(directory, batch, count)), int),
    ]
    title = f"log, {name} a durable append, {writers} {'writer' if writers == 1 else 'writers'}"
    contest.hold(title, contenders, items=count, expected=count * batch.num_rows, unit="append")


def bench_read(contest, size):
    """Warm: what is read was just written."""
    count = 8 if size.rows < SMALL_BELOW_ROWS else 128
    batch = batch_of(4 << 20)
    with Room() as directory:
        appended(directory, batch, count, 1)

        def read():
            with Log(os.path.join(directory, "log"), write=False) as log:
                return sum(rows.num_rows for rows in log.read())

        contest.hold(
            "log, reading back 4 MiB frames", [Contender("engine", read, int)], items=count * (4 << 20),
            expected=count * batch.num_rows, unit="byte",
        )  # fmt: skip


def bench_open(contest, size):
    """Opening after a crash: the newest segment is read whole."""
    count = 4 if size.rows < SMALL_BELOW_ROWS else 60
    batch = batch_of(4 << 20)
    with Room() as directory:
        appended(directory, batch, count, 1)

        def reopen():
            with Log(os.path.join(directory, "log")) as log:
                return log.end()

        contest.hold(
            f"log, opening with {count * 4} MiB in the newest segment", [Contender("engine", reopen, int)], items=1,
            expected=count * batch.num_rows, unit="opening",
        )  # fmt: skip
