"""The job in memory on batches of 100 and 1,000 rows, beside those of 65,536: what small batches cost."""

import pyarrow as pa
from job_outcome import outcome_expected
from jobs_engine import batches_in_memory


def bench_batch_size(contest, events, rows):
    rows = min(rows, 2_000_000)
    table = pa.Table.from_batches(events).slice(0, rows)
    # Re-chunked, not sliced: small batches as a producer makes them have buffers of their own.
    whole = table.drop_columns(["delivery"]).combine_chunks()
    contenders = [
        batches_in_memory(whole.to_batches(max_chunksize=batch_rows), f"engine, batches of {batch_rows:,}")
        for batch_rows in (65_536, 1_000, 100)
    ]
    expected = outcome_expected(table.to_batches(), scaled=False)
    contest.hold("job in memory, small batches", contenders, items=rows, expected=expected)
