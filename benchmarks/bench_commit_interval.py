"""What a commit costs: the whole job with commits from every 10 ms to every 10 s."""

import statistics
import threading
import time
from dataclasses import dataclass, field
from functools import partial

import trio
from bench_ingest import scaled
from ingested import outcome_expected, outcome_of

import engine
from engine import sinks, sources
from engine._runtime.run import Options, execute

INTERVALS_S = {"small": (0.01, 0.1, 1.0), "large": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}


@dataclass
class Commits:
    """An instrument that takes the time from the barrier of an epoch to its last step."""

    seconds: list[float] = field(default_factory=list)
    _began_s: dict[int, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: str, /, **fields: object) -> None:
        with self._lock:
            if event == "commit.barrier":
                self._began_s[fields["epoch"]] = time.perf_counter()
            elif event == "commit.finalized":
                self.seconds.append(time.perf_counter() - self._began_s.pop(fields["epoch"]))


def bench_commit_interval(pytestconfig, lines, events, events_file, tmp_path):
    expected = outcome_expected(events)
    lines.append(f"{'commit every':>12} {'rows/s':>12} {'commits':>8} {'files':>7} {'median':>9} {'longest':>9}")
    for interval_s in INTERVALS_S[pytestconfig.getoption("size")]:
        directory = tmp_path / f"{interval_s}"
        sink = sinks.parquet(str(directory / "out"))
        pipeline = (
            engine.Pipeline("bench")
            .read(sources.arrow_ipc(str(events_file)))
            .dedup("event_id", within=10_000_000)
            .key_by("key", partitions=8)
            .map(scaled)
            .write(sink)
        )
        commits = Commits()
        options = Options(state=str(directory / "state"), commit_every_s=interval_s, instrument=commits)
        report = trio.run(partial(execute, pipeline, sink, options))
        assert outcome_of(directory / "out") == expected
        files = len(list((directory / "out").iterdir()))
        assert len(commits.seconds) == report.epochs
        lines.append(
            f"{interval_s:>10} s {report.rows_per_s:>12,.0f} {report.epochs:>8,} {files:>7,}"
            f" {statistics.median(commits.seconds) * 1e3:>6,.0f} ms {max(commits.seconds) * 1e3:>6,.0f} ms"
        )
