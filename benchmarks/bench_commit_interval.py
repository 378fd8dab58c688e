"""What a commit costs: the whole job with commits from every 10 ms to every 10 s."""

import shutil
import statistics
import threading
import time
from dataclasses import dataclass, field
from functools import partial

import trio
from contest import Contender
from job_outcome import outcome_expected, outcome_of_files
from jobs_engine import WITHIN, scaled

import engine
from engine import sinks, sources
from engine._runtime.run import Options, execute

INTERVALS_S = {"small": (0.01, 1.0), "large": (0.01, 0.1, 1.0, 10.0), "huge": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}


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


def contender(interval_s, source, directory):
    def run():
        shutil.rmtree(directory, ignore_errors=True)
        sink = sinks.parquet(str(directory / "out"))
        pipeline = (
            engine.Pipeline("bench")
            .read(sources.arrow_ipc(str(source)))
            .dedup("event_id", within=WITHIN)
            .key_by("key", partitions=8)
            .map(scaled)
            .write(sink)
        )
        commits = Commits()
        options = Options(state=str(directory / "state"), commit_every_s=interval_s, instrument=commits)
        return trio.run(partial(execute, pipeline, sink, options)), commits.seconds

    def answer(result):
        report, seconds = result
        assert len(seconds) == report.epochs
        return outcome_of_files(directory / "out")

    def note(result):
        report, seconds = result
        return (
            f"{report.epochs} commits, {report.output_files:,} files; barrier to commit: "
            f"median {statistics.median(seconds) * 1e3:.0f} ms, longest {max(seconds) * 1e3:.0f} ms"
        )

    return Contender(f"engine, every {interval_s:g} s", run, answer, note=note)


def bench_commit_interval(contest, pytestconfig, events, events_file, rows, tmp_path):
    intervals_s = INTERVALS_S[pytestconfig.getoption("--size")]
    contenders = [contender(interval_s, events_file, tmp_path / f"{interval_s}") for interval_s in intervals_s]
    contest.hold("commit interval", contenders, items=rows, expected=outcome_expected(events))
