"""A user's own pipeline on a simulated machine: its power fails, its disk refuses, it is started again, and in the end
its rows are compared with those of a run to which nothing happened.

    for outcome in simulate(make_pipeline, seeds=range(1000)):
        assert outcome.problem is None, outcome

Laws
    - Rows are equal where every bit of their values is: a NaN is itself, 0.0 is not -0.0.
    - Threads are tasks of one thread, time is virtual, chance is seeded: one seed is one history, and the same seed
      gives the same ``trace`` again, in any process.
    - Everything that the pipeline keeps and writes is on the simulated disk, and so are logs that it reads, copied from
      where they are; other sources are read as they are.
    - Every seed has at least one fault that is to fire while the pipeline runs; those that fired are counted. After the
      last of them the pipeline is run to its end, and then the power fails once more: what was committed must be there,
      and what dedup remembers must be what a model remembers that saw the same rows.
    - An error is accepted where a fault fired in that attempt, and only one of engine's own; rows are then compared all
      the same.
    - One seed of four has faults that corrupt: bits flip, and syncs lie until the power fails. There the right end is
      the right rows, or a refusal that names the file, is repeated at the next start, and removes nothing; never a
      wrong row.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from engine.errors import PipelineError
from engine.pipeline import Pipeline
from engine.testing.simulated_history import History
from engine.testing.simulated_output import Tables
from engine.testing.simulated_world import World
from engine.testing.storage import SimulatedStorage

__all__ = ["Outcome", "simulate"]


@dataclass(slots=True)
class Outcome:
    """What became of one seed. ``problem`` is None where all is well."""

    seed: int
    attempts: int = 0
    epoch: int = 0
    """The epoch of the last commit; numbers of epochs that never were committed are not used again."""

    fired: Counter[str] = field(default_factory=Counter)
    """How often each fault fired, by name; ``kill`` and ``crash`` are how it was ended before a new start."""

    trace: str = ""
    """A digest of every call of every attempt."""

    stopped: str | None = None
    """The error with which it stopped for good, where something was corrupted."""

    problem: str | None = None


def simulate(
    make_pipeline: Callable[[], Pipeline],
    *,
    seeds: Iterable[int],
    memory: str = "1MiB",
    commit_every_bytes: int | None = None,
    check: Callable[[Tables], Sequence[str]] | None = None,
    storage: Callable[..., SimulatedStorage] = SimulatedStorage,
) -> Iterator[Outcome]:
    """Run the pipeline once for each seed, with faults, and once without; give an outcome a seed.

    ``make_pipeline`` gives the same pipeline each time. Its sink must write by engine's storage: Parquet, Arrow IPC,
    log. ``commit_every_bytes``: None takes a third of the input at most, so that there are several commits.
    ``check``: an oracle of your own; it is given the rows that are there in the end, as tables by partition, and gives
    complaints.
    ``storage``: the simulated disk, for those who want another one. Raises PipelineError for a pipeline that cannot be
    simulated, and for arguments, of which it is told when they are used.
    """
    if not isinstance(seeds, Iterable):
        raise PipelineError(f"simulate: seeds must be several whole numbers, such as range(1000); found {seeds!r}")
    world = World(make_pipeline, memory, commit_every_bytes, check, storage)
    for seed in seeds:
        outcome = Outcome(_checked(seed))
        History(world, outcome).run()
        yield outcome


def _checked(seed: Any) -> int:
    """A seed, also one of NumPy's. One below 0 would be drawn as its opposite is."""
    with suppress(TypeError):
        if not isinstance(seed, bool) and (number := operator.index(seed)) >= 0:
            return number
    raise PipelineError(f"simulate: each of seeds must be a whole number, at least 0; found {seed!r}")
