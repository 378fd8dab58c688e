"""``HashPartitioner`` on whole batches, inputs cold, beside Polars and pyarrow; and what skewed keys cost.

The first of Polars' contenders has one thread, as a kernel has; the second all that there are.
"""

import pytest
from child import ChildContender
from jobs_partition import expected

ONE_THREAD = {"POLARS_MAX_THREADS": "1"}


@pytest.mark.parametrize("ways", [8, 64])
def bench_partition(contest, peer, events_file, ways):
    arguments = {"source": str(events_file), "ways": ways}
    contenders = [ChildContender("engine", "jobs_partition:engine", arguments)]
    if peer("polars"):
        contenders.append(
            ChildContender("polars, 1 thread", "jobs_partition:polars", arguments, environment=ONE_THREAD)
        )
        contenders.append(ChildContender("polars, all threads", "jobs_partition:polars", arguments))
    contenders.append(ChildContender("pyarrow, sort and take", "jobs_partition:pyarrow_take", arguments))
    if ways == 8:
        contenders.append(ChildContender("pyarrow, filter each", "jobs_partition:pyarrow_filter", arguments))
    right = expected(str(events_file))
    contest.hold(f"partition, {ways} ways", contenders, items=right[0], expected=right)


def bench_skew(contest, peer, events_file):
    arguments = {"source": str(events_file), "ways": 8, "skewed": True}
    contenders = [
        ChildContender("engine, even keys", "jobs_partition:engine", arguments | {"key": "even"}),
        ChildContender("engine, one key 90 %", "jobs_partition:engine", arguments | {"key": "uneven"}),
    ]
    if peer("polars"):
        contenders += [
            ChildContender(name, "jobs_partition:polars", arguments | {"key": key}, environment=ONE_THREAD)
            for name, key in (("polars, even keys", "even"), ("polars, one key 90 %", "uneven"))
        ]
    right = expected(str(events_file))
    contest.hold("partition, 8 ways, skew", contenders, items=right[0], expected=right)
