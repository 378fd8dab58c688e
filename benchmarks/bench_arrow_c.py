"""The border: a batch in through the Arrow C data interface and out again, beside pyarrow's own import."""

import pyarrow as pa
from contest import Contender

from engine._core.arrow_c import describe
from engine._core.partition import gather

TIMES = 2_000


def bench_border(contest, events):
    batch = events[0].slice(0, 10)
    columns = batch.num_columns

    def into_engine():
        for _ in range(TIMES):
            shapes = describe(batch)
        return len(shapes)

    def through_pyarrow():
        for _ in range(TIMES):
            there = pa.RecordBatch._import_from_c_capsule(*batch.__arrow_c_array__())
        return there.num_columns

    contenders = [Contender("engine, parse", into_engine, int), Contender("pyarrow, import", through_pyarrow, int)]
    contest.hold("border, 10 rows in", contenders, items=TIMES, expected=columns, unit="batche")


def bench_there_and_back(contest, events):
    batch = events[0].slice(0, 10)
    wanted = bytes([1, 0] * 5)
    expected = batch.take(pa.array([0, 2, 4, 6, 8]))
    mask = pa.array([True, False] * 5)

    def engine():
        for _ in range(TIMES):
            kept = gather(batch, wanted)
        return kept

    def pyarrow():
        for _ in range(TIMES):
            kept = batch.filter(mask)
        return kept

    contenders = [
        Contender("engine, gather", engine, pa.RecordBatch.to_pylist),
        Contender("pyarrow, filter", pyarrow, pa.RecordBatch.to_pylist),
    ]
    contest.hold(
        "border, 5 of 10 rows in and out", contenders, items=TIMES, expected=expected.to_pylist(), unit="batche"
    )
