"""What ``dedup`` means, as a dictionary, and what a window says that was restored from a commit.

Laws
    - The model sees every row in order: a row is dropped where its key was seen within the window, and every sighting
      counts. A key with a null component is never dropped and takes no place.
    - A time is the running maximum of the clock. Between ``within`` and 65/64 of it both answers are right.
    - A restored window answers on a storage of its own: what it writes meanwhile is nobody's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from engine.batch import Batch, Origin
from engine.instrument import SILENT
from engine.stage import StageState, Surroundings
from engine.stages.dedup import Dedup
from engine.testing.determinism import run_deterministically
from engine.testing.exact_rows import NULL, encode
from engine.testing.inline_threads import InlineBackground
from engine.testing.storage import SimulatedStorage

__all__ = ["DedupModel", "Question", "ask_restored", "question_of"]

T = TypeVar("T")

MOST_KNOWN = 120
"""Rows of those that were seen which a restored window is asked about."""


class DedupModel:
    """The window of one partition."""

    def __init__(self, stage: Dedup) -> None:
        self._stage = stage
        self._seen: dict[tuple[Any, ...], int] = {}
        self._position = 0
        self._now = -(1 << 63)
        timed = isinstance(stage.within, timedelta)
        self._within: Any = stage.within // timedelta(microseconds=1) if timed else stage.within  # type: ignore[operator]

    def probe(self, rows: pa.Table) -> list[bool | None]:
        """Whether each row is dropped; None where either is right. All are seen afterwards."""
        keys = zip(*(_values(rows, name) for name in self._stage.keys), strict=True)
        if self._stage.by is None:
            return [self._probe_row(key) for key in keys]
        times: Any = rows.column(self._stage.by)
        clock = times.cast(pa.timestamp("us", times.type.tz), safe=False).cast(pa.int64()).to_pylist()
        return [self._probe_at(key, now) for key, now in zip(keys, clock, strict=True)]

    def _probe_row(self, key: tuple[Any, ...]) -> bool:
        if None in key:
            return False
        seen, position = self._seen.get(key), self._position
        self._seen[key] = position
        self._position += 1
        return seen is not None and (self._within is None or seen >= position - self._within)

    def _probe_at(self, key: tuple[Any, ...], now: int | None) -> bool | None:
        if None in key:
            return False
        self._now = self._now if now is None else max(self._now, now)
        seen = self._seen.get(key)
        self._seen[key] = self._now
        if seen is None or self._now - seen > self._within + max(1, self._within // 64):
            return False
        return True if self._now - seen <= self._within else None


@dataclass(frozen=True, slots=True)
class Question:
    """Rows to ask a restored window about, and the model's answers."""

    rows: pa.RecordBatch
    dropped: Sequence[bool | None]


def question_of(stage: Dedup, seen: pa.Table) -> Question:
    """Some of the rows that were seen, and some that were not, to a model that has seen them all."""
    model = DedupModel(stage)
    model.probe(seen)
    known = seen.take(pa.array(range(0, seen.num_rows, max(1, seen.num_rows // MOST_KNOWN)), pa.int64()))
    asked = pa.concat_tables([known, _turned(known, stage.keys), known.slice(0, MOST_KNOWN // 4)]).combine_chunks()
    return Question(asked.to_batches()[0], model.probe(asked))


def ask_restored(
    stage: Dedup, state: StageState, question: Question, storage: SimulatedStorage, directory: str, memory_bytes: int
) -> list[bool]:
    """Restore the window that a commit describes, and ask it. Raises EngineError."""
    return run_deterministically(0, _answers, stage, state, question.rows, storage, directory, memory_bytes)


async def _answers(
    stage: Dedup,
    state: StageState,
    rows: pa.RecordBatch,
    storage: SimulatedStorage,
    directory: str,
    memory_bytes: int,
) -> list[bool]:
    async def at_once(fn: Callable[..., T], /, *args: object) -> T:
        return fn(*args)

    surroundings = Surroundings(
        partition=0,
        offload=at_once,
        background=InlineBackground(),
        memory_bytes=memory_bytes,
        storage=storage,
        directory=directory,
        durable=True,
        seed=bytes.fromhex(state["seed"]),
        instrument=SILENT,
    )
    window = stage.open(rows.schema, surroundings)
    try:
        await window.restore(state)
        [found] = await window.process(Batch(rows, Origin("question", "question", 0, rows.num_rows)))
    finally:
        await window.close()
    if found.selection is None:
        return [False] * rows.num_rows
    return [not wanted for wanted in bytes(found.selection)]


def _values(rows: pa.Table, name: str) -> list[bytes | None]:
    """What a key holds of each row: its bytes, for many values have no form in Python; None for null."""
    column: Any = rows.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        # As keys all NaN are one, and -0.0 is 0.0.
        column = pc.add(column.cast(pa.float64()), 0.0)
        column = pc.if_else(pc.is_nan(column), float("nan"), column)
    return [None if data == NULL else data for chunk in column.chunks for data in encode(chunk)]


def _turned(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The same rows with other keys, as far as their types have some."""
    for name in keys:
        index, column = rows.schema.get_field_index(name), rows.column(name)
        kind: Any = column.type
        if pa.types.is_integer(kind):
            turned: Any = pc.bit_wise_not(column)
        elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
            turned = pc.binary_reverse(column.cast(pa.binary())).cast(kind, safe=False)
        else:
            continue
        rows = rows.set_column(index, rows.schema.field(index), turned)
    return rows
