"""SIGKILL at random moments and between all steps of a commit, restarted until the job ends: nothing lost, nothing
twice.

``--kills N`` asks for more than the default; the seed is printed, and ``--seed`` repeats it.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from crash import model
from crash.jobs import GAPS, Job, split_into_files
from crash.nursery_of_kills import KILLED, Onlooker, Zygote

from engine.testing.workload import redeliver

FILES = 50
MOST_ROUNDS = 20


@dataclasses.dataclass
class Tally:
    """What the kills of a test hit."""

    kills: int = 0
    after_first_commit: int = 0
    at: Counter[str] = dataclasses.field(default_factory=Counter)
    rounds: int = 0
    epochs: int = 0
    seals: int = 0
    merges: int = 0


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill of the plan: at an event, or (None) after a time."""

    at: str | None
    on: int
    after_s: float | None

    def sooner(self) -> "Kill":
        """For a job that ended before it."""
        return self if self.after_s is None else dataclasses.replace(self, after_s=self.after_s / 2)


NO_KILL = Kill(None, 1, None)


def plan_of(kills: int, gaps: tuple[str, ...], per_gap: int, generator: random.Random, longest_s: float) -> list[Kill]:
    planned = [Kill(gap, generator.randint(1, 2), None) for gap in gaps for _ in range(per_gap)]
    planned += [Kill(None, 1, generator.uniform(0.0, longest_s)) for _ in range(kills - len(planned))]
    generator.shuffle(planned)
    planned.insert(-3, Kill("commit.committed", 1, None))  # so that most of the others are behind a first commit
    return planned


SEALING = ("seal.begin", "seal.end", "merge.begin", "merge.end")
"""While a run of ids is being sealed, and while runs are being merged."""


class Campaign:
    """Runs a job again and again under a plan of kills, with the output checked whenever it came to its end."""

    def __init__(self, zygote: Zygote, directory: Path, job: Job, expected: pa.Table, input_rows: int) -> None:
        self.tally = Tally()
        self._zygote = zygote
        self._directory = directory
        self._job = job
        self._expected = expected
        self._input_rows = input_rows
        self._epoch_rows = -(-input_rows // FILES)

    def run(self, plan: list[Kill]) -> None:
        remaining = list(plan)
        while remaining:
            assert self.tally.rounds < MOST_ROUNDS, f"these kills are never reached: {remaining}"
            self._round(remaining)

    def _round(self, remaining: list[Kill]) -> None:
        """One fresh state, killed until the job ends."""
        self.tally.rounds += 1
        directory = self._directory / f"round-{self.tally.rounds}"
        directory.mkdir()
        job = dataclasses.replace(
            self._job,
            output=str(directory / "output"),
            state=str(directory / "state"),
            reads=str(directory / "reads"),
            events=str(directory / "events"),
        )
        kills = 0
        with Onlooker(directory / "output", directory / "state" / "events") as onlooker:
            status = KILLED
            while status == KILLED:
                kill = remaining.pop() if remaining else NO_KILL
                before = Counter(self._events(directory))
                status = self._zygote.run(
                    dataclasses.replace(job, kill_at=kill.at, kill_on=kill.on), kill_after_s=kill.after_s
                )
                assert status in (0, KILLED), f"the job failed by itself; see {self._directory}"
                if status == KILLED:
                    kills += 1
                    self._note(kill, before)
                elif kill != NO_KILL:
                    remaining.append(kill.sooner())  # The job ended before it: it is owed to the next round.
        assert onlooker.faults == []
        assert onlooker.files_read > 0
        events = Counter(self._events(directory))
        self.tally.epochs = max(self.tally.epochs, events["commit.committed"])
        self.tally.seals = max(self.tally.seals, events["seal.end"])
        self.tally.merges = max(self.tally.merges, events["merge.end"])
        model.check_exactly_once(directory / "output", self._expected)
        rows_read = sum(int(line) for line in (directory / "reads").read_text().split())
        assert rows_read <= self._input_rows + kills * 2 * self._epoch_rows

    def _note(self, kill: Kill, before: Counter[str]) -> None:
        self.tally.kills += 1
        self.tally.after_first_commit += before["commit.committed"] > 0
        self.tally.at[kill.at or "random"] += 1

    @staticmethod
    def _events(directory: Path) -> list[str]:
        path = directory / "events"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    with Zygote(tmp_path / "zygote.log") as started:
        yield started


def test_main_job_survives_kills(
    tmp_path: Path, zygote: Zygote, events: pa.Table, kills: int, generator: random.Random
) -> None:
    delivered = redeliver(events, seed=1, share=0.1, max_distance=50_000)
    split_into_files(delivered, tmp_path / "input", FILES)
    job = Job(input=str(tmp_path / "input"))
    campaign = Campaign(zygote, tmp_path, job, model.distinct_first_deliveries(delivered), delivered.num_rows)
    per_gap = max(1, kills // 20)
    campaign.run(plan_of(kills, GAPS, per_gap, generator, longest_s=1.0))
    tally = campaign.tally
    print(tally)
    assert tally.kills >= kills
    assert tally.after_first_commit * 2 >= tally.kills
    assert tally.epochs >= 30
    assert all(tally.at[gap] >= per_gap for gap in GAPS)


def test_windowed_job_survives_kills_while_sealing(
    tmp_path: Path, zygote: Zygote, events: pa.Table, kills: int, generator: random.Random
) -> None:
    # Re-deliveries up to two windows late: on both sides of its edge, and across every restart.
    within = events.num_rows // 10
    delivered = redeliver(events, seed=2, share=0.1, max_distance=2 * within)
    split_into_files(delivered, tmp_path / "input", FILES)
    # In a mebibyte few recent keys stay in memory: most of the window is in sealed runs.
    job = Job(input=str(tmp_path / "input"), within=within, memory="1MiB")
    expected = model.windowed(delivered, within)
    assert 0 < expected.num_rows - events.num_rows < delivered.num_rows - events.num_rows
    campaign = Campaign(zygote, tmp_path, job, expected, delivered.num_rows)
    per_event = max(1, kills // 20)
    campaign.run(plan_of(max(8, kills // 3), SEALING, per_event, generator, longest_s=1.0))
    tally = campaign.tally
    print(tally)
    assert all(tally.at[event] >= per_event for event in SEALING)
    assert tally.seals >= 5
    assert tally.merges >= 1
