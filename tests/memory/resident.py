"""Runs the main job on generated rows and prints the largest anonymous resident memory of the process, in bytes.

Usage: resident.py DIRECTORY ROWS MEMORY WITHIN. Anonymous memory is what the process itself holds: files in the page
cache do not count.
"""

import sys
import threading
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

import engine
from engine import sinks, sources
from engine.testing.workload import generate


def anonymous_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class Watch(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def stop(self) -> int:
        self._stop_event.set()
        self.join()
        return max(self.peak_bytes, anonymous_bytes())


def add_tax(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.set_column(4, "amount", pc.multiply(rows.column("amount"), 1.1))


def main(directory: str, rows: int, memory: str, within: int) -> None:
    def stream() -> Iterator[pa.RecordBatch]:
        return generate(rows, seed=7, max_distance=100_000)

    source = sources.memory(stream, id="generated", schema=next(generate(1, seed=7)).schema)
    pipeline = engine.Pipeline("memory").read(source).dedup("event_id", within=within).key_by("key", partitions=8)
    pipeline = pipeline.map(add_tax).write(sinks.parquet(f"{directory}/out"))
    watch = Watch()
    watch.start()
    report = engine.run(pipeline, state=f"{directory}/state", memory=memory, commit_every_s=1.0)
    peak_bytes = watch.stop()
    assert report.total.rows_in == rows
    print(peak_bytes)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
