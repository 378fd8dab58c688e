"""What all seeds of a simulated pipeline share: the pipeline, its disk at the beginning, and what is right in the end.

Laws
    - A run without faults says which rows are right; ``check`` may know it from elsewhere.
    - What dedup must remember follows from the rows that entered it, which the stages before it give when they run
      alone, and from a model. Rows of several sources have no order of their own: then there is no model.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from engine._runtime.budget import Budget
from engine._runtime.run import Options, execute
from engine.checkpoint.manifest import Commit
from engine.checkpoint.store import find_manifest, stage_directory
from engine.errors import PipelineError
from engine.pipeline import Pipeline
from engine.report import Report
from engine.sinks.arrow_ipc_files import arrow_ipc
from engine.sources.durable_log import LogSource
from engine.stages.dedup import Dedup
from engine.stages.hash_partitioner import KeyBy
from engine.storage import Storage
from engine.testing.checkers import CHECKERS, no_loss, state_equals_model
from engine.testing.dedup_model import Question, ask_restored, question_of
from engine.testing.determinism import run_deterministically
from engine.testing.exact_rows import ExactRow, exact_rows, surely_equal
from engine.testing.fault_draw import FaultDraw
from engine.testing.inline_threads import Delay, InlineBackground, InlineWorkers
from engine.testing.simulated_output import Tables, location_of, read_output
from engine.testing.storage import SimulatedStorage

__all__ = ["STATE", "World"]

STATE = "/simulated-state"
COMMITS = 3
"""At least about so many: the bytes of the input are only estimated."""
BESIDE = "/rows-before-dedup"


@dataclass(frozen=True, slots=True)
class _Window:
    """A window of dedup: where its state is, and what it must answer in the end."""

    stage: Dedup
    partition: int
    question: Question


class World:
    """One pipeline to be simulated. Raises PipelineError where it cannot be."""

    def __init__(
        self,
        make_pipeline: Callable[[], Pipeline],
        memory: str,
        commit_every_bytes: int | None,
        check: Callable[[Tables], Sequence[str]] | None,
        storage: Callable[..., SimulatedStorage],
    ) -> None:
        self._make_pipeline = make_pipeline
        self._memory = memory
        self._check = check
        self._storage = storage
        self._pipeline = _checked(make_pipeline)
        self._state = os.path.join(STATE, self._pipeline.name)
        self.roots = [STATE, location_of(self._pipeline)]
        flipped, lied = [f"{STATE}/*"], [f"{STATE}/*"]
        if _is_log(self._pipeline):
            flipped.append(f"{self.roots[1]}/*")
            lied += [f"{self.roots[1]}/*", f"{self.roots[1]}/*.seg"]
        first = SimulatedStorage(0)
        for source in self._pipeline.graph.sources:
            if isinstance(source, LogSource):
                _copy(os.path.abspath(source.path), first)
                self.roots.append(os.path.abspath(source.path))
                flipped.append(f"{self.roots[-1]}/*")
        self._disk = first.crash("everything").disk()
        self._schema = self._pipeline.graph.schemas()[-1]
        self._commit_every_bytes = 1 << 62 if commit_every_bytes is None else commit_every_bytes
        if commit_every_bytes is None:
            report = self.start(0, self.storage(0))
            self._commit_every_bytes = max(1, _input_bytes(self._pipeline, report) // COMMITS)
        undisturbed = self.storage(0)
        self.start(0, undisturbed)
        self.draw = FaultDraw(len(undisturbed.trace), flipped=flipped, lied=lied)
        keys = next((stage.keys for stage in self._pipeline.graph.stages if isinstance(stage, KeyBy)), ())
        self._keys = [key for key in keys if key in self._schema.names]
        self._expected = self.read(undisturbed)
        self._expected_rows = self._rows_of(self._expected)
        self._windows = list(self._windows_of()) if len(self._pipeline.graph.sources) == 1 else []

    def storage(self, seed: int, **options: Any) -> SimulatedStorage:
        """The disk as it is before the first start."""
        return self._storage(seed, disk=self._disk.copy(), **options)

    def start(self, seed: int, storage: SimulatedStorage, delay: Delay | None = None) -> Report:
        """Run the pipeline on what the storage holds. Raises as the run does, and PowerLost."""
        return self._execute(self._make_pipeline(), seed, storage, delay or Delay())

    def _execute(self, pipeline: Pipeline, seed: int, storage: SimulatedStorage, delay: Delay) -> Report:
        graph = pipeline.graph
        sources = [replace(s, storage=storage) if isinstance(s, LogSource) else s for s in graph.sources]
        placed = pipeline._with(sources=tuple(sources))
        sink = graph.sink
        sink.storage = storage  # type: ignore[union-attr]
        background = InlineBackground()
        options = Options(
            state=STATE,
            memory=self._memory,
            commit_every_s=1e9,
            commit_every_bytes=self._commit_every_bytes,
            storage=storage,
            workers=lambda: InlineWorkers(Random(seed), background, delay),  # type: ignore[arg-type,return-value]
            background=lambda name: background,  # type: ignore[arg-type,return-value]
        )
        return run_deterministically(seed, execute, placed, sink, options)

    # What is right in the end.

    def read(self, storage: SimulatedStorage) -> Tables:
        """The rows that readers find. Raises what reading raises."""
        return read_output(self._pipeline, storage, self._schema)

    def wrong_rows(self, found: Tables, *, stopped: bool) -> list[str]:
        """Complaints about the rows that readers find; some may be missing where it ``stopped``. Raises PipelineError
        for what ``check`` gives, and what it raises.
        """
        complaints: list[str] = []
        if not _surely_equal(found, self._expected):
            rows = self._rows_of(found)
            checkers = [checker for checker in CHECKERS if not (stopped and checker is no_loss)]
            complaints = [line for checker in checkers for line in checker(rows, self._expected_rows, _key_of)]
        if self._check is not None and not stopped:
            complaints += _checked_complaints(self._check(found))
        return complaints

    def _rows_of(self, tables: Tables) -> dict[int, list[ExactRow]]:
        return {number: exact_rows(table, self._keys) for number, table in tables.items()}

    def last_commit(self, storage: SimulatedStorage) -> Commit | None:
        """The last COMMIT of the state. Raises StateError and OSError."""
        manifest = find_manifest(storage, self._state, storage.list(self._state))
        return None if manifest is None else manifest.history.last_commit

    def wrong_state(self, storage: SimulatedStorage, last: Commit) -> list[str]:
        """Complaints about what a COMMIT remembers. Raises what reading raises."""
        complaints = []
        for window in self._windows:
            name = window.stage.name
            state = last.states[name][window.partition]
            if state is None:
                complaints.append(f"{name}, partition {window.partition}: there is no state")
                continue
            directory = stage_directory(self._state, name, window.partition)
            answers = ask_restored(window.stage, state, window.question, storage, directory, self._dedup_bytes())
            wrong = state_equals_model(answers, window.question.dropped)
            complaints += [f"{name}, partition {window.partition}: {line}" for line in wrong]
        return complaints

    def _windows_of(self) -> Iterator[_Window]:
        stages = self._pipeline.graph.stages
        for index, stage in enumerate(stages):
            if isinstance(stage, Dedup):
                before = self._pipeline._with(stages=stages[:index], sink=arrow_ipc(BESIDE))
                storage = self.storage(0)
                self._execute(before, 0, storage, Delay())
                schema = self._pipeline.graph.schemas()[index]
                for partition, table in read_output(before, storage, schema).items():
                    yield _Window(stage, partition, question_of(stage, table))

    def _dedup_bytes(self) -> int:
        """The share of a window, as a run gives it."""
        dedups, lanes = 0, 1
        for stage in self._pipeline.graph.stages:
            lanes = stage.partitions if isinstance(stage, KeyBy) else lanes
            dedups += lanes * isinstance(stage, Dedup)
        return Budget(Options(memory=self._memory).memory_bytes(), dedups, 1).dedup_bytes


def _checked(make_pipeline: Callable[[], Pipeline]) -> Pipeline:
    if not callable(make_pipeline):
        raise PipelineError(
            f"simulate: make_pipeline must be a function that gives a Pipeline, found {make_pipeline!r}"
        )
    made = make_pipeline()
    if not isinstance(made, Pipeline):
        raise PipelineError(f"simulate: make_pipeline must give a Pipeline, found {made!r}")
    return made


def _checked_complaints(complaints: Sequence[str]) -> Sequence[str]:
    several = isinstance(complaints, Sequence) and not isinstance(complaints, str)
    if not several or not all(isinstance(complaint, str) for complaint in complaints):
        raise PipelineError(
            f"simulate: check must give a list of complaints, empty where all is well; found {complaints!r}"
        )
    return complaints


def _key_of(row: ExactRow) -> ExactRow | None:
    return row.key


def _is_log(pipeline: Pipeline) -> bool:
    return getattr(pipeline.graph.sink, "kind", None) == "log"


def _copy(path: str, target: SimulatedStorage) -> None:
    """Take over a log that lies on the real disk."""
    real = Storage()
    for relative in sorted(real.tree(path)):
        copied = os.path.join(path, relative)
        target.make_directory(os.path.dirname(copied))
        with real.open(copied) as source, target.create(copied) as file:
            file.append(source.pread(source.size, 0))


def _input_bytes(pipeline: Pipeline, report: Report) -> int:
    """About the bytes of the rows that were read."""
    schema = pipeline.graph.schemas()[0]
    return report.total.rows_in * sum(16 if kind.num_buffers > 2 else 8 for kind in schema.types)


def _surely_equal(some: Tables, others: Tables) -> bool:
    return some.keys() == others.keys() and all(surely_equal(table, others[number]) for number, table in some.items())
