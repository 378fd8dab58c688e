"""The contract of a stage: rows in, rows out, and the state that a checkpoint holds of it.

A ``Stage`` is a value in the pipeline; ``open`` makes the ``Transform`` that runs in one lane.

Laws
    - ``output_schema`` alone decides the schema of what ``process`` returns.
    - ``process`` keeps the order of rows, and nothing in its result depends on where batches begin and end.
    - A stage with state gives it in ``snapshot`` when a barrier passes; ``restore`` brings back exactly that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import pyarrow as pa

from engine.background import Background
from engine.batch import Batch
from engine.instrument import Instrument
from engine.storage import Storage

__all__ = ["Offload", "Stage", "StageState", "Surroundings", "Transform"]

StageState: TypeAlias = dict[str, Any]
"""A stage's part of a checkpoint: a value that JSON can hold, naming the files that hold the rest."""

T = TypeVar("T")


class Offload(Protocol):
    """Runs a blocking or long function on a worker thread; cancellation waits for it to end."""

    async def __call__(self, fn: Callable[..., T], /, *args: object) -> T:
        """Give what ``fn(*args)`` returns or raises."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a transform is given by the run that opens it."""

    partition: int
    """The partition that it serves; 0 before the exchange."""

    offload: Offload
    background: Background
    """For work that goes on between calls."""

    memory_bytes: int
    """The share of the byte budget that its state may take."""

    storage: Storage
    directory: str
    """A directory of its own for its state. It may not exist yet."""

    durable: bool
    """Whether checkpoints are taken; without them ``directory`` is temporary."""

    seed: bytes
    """16 secret bytes of this incarnation."""

    instrument: Instrument


@runtime_checkable
class Transform(Protocol):
    """A stage at work in one lane. One call at a time, but for ``process`` as ``concurrency`` allows."""

    concurrency: int
    """How many ``process`` calls may be under way at once; results are emitted in order."""

    async def process(self, batch: Batch) -> list[Batch]:
        """Give what becomes of a batch. Raises StageError."""

    async def snapshot(self) -> StageState | None:
        """Make the state as of now durable and describe it; None where there is none."""

    async def restore(self, state: StageState) -> None:
        """Begin from what ``snapshot`` described. Raises CorruptState."""

    async def release(self, state: StageState) -> None:
        """The checkpoint with ``state`` is final: files that only older ones need may go."""

    def statistics(self) -> Mapping[str, int]:
        """Counters since the run began, such as ``duplicates``."""

    async def close(self) -> None:
        """Release files and memory. Harmless when repeated."""


@runtime_checkable
class Stage(Protocol):
    """What happens to rows between source and sink: an immutable value."""

    @property
    def name(self) -> str:
        """What messages call it, such as ``map add_tax``."""

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the rows that leave, for the schema of those that enter. Raises PipelineError."""

    def fingerprint(self) -> StageState | None:
        """What must not change between runs on one state; None where the stage may change freely."""

    def open(self, schema: pa.Schema, surroundings: Surroundings) -> Transform:
        """The transform for one lane, for rows of ``schema``."""
