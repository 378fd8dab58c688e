"""``dedup``: drops a row whose key was seen before, exactly, within a window, across restarts. Marks rows; copies none.

Laws
    - The first row of a key wins, inside a batch too; every sighting refreshes its key.
    - A key with a null component is never a duplicate; such rows are counted.
    - What was seen becomes durable with the epoch: never before the rows are safe, never after.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import pyarrow as pa

from engine.batch import Batch
from engine.errors import CorruptState, PipelineError, StateError, missing_column
from engine.stage import StageState, Surroundings
from engine.stages.hash_partitioner import column_indices
from engine.stages.key_window import Exactness, KeyWindow, chunk_ids_of, exactness_faults

__all__ = ["Dedup"]

T = TypeVar("T")


@dataclass(frozen=True)
class Dedup:
    """Keeps the first of all rows with equal ``keys``: for ever, among the last n rows, or within a time of ``by``.

    ``exact``: whether keys of more than 16 bytes are told apart by fingerprints or by all their bytes.
    """

    keys: tuple[str, ...]
    within: int | timedelta | None = None
    by: str | None = None
    exact: Exactness = "fingerprint"

    @property
    def name(self) -> str:
        """``dedup`` and its columns."""
        return "dedup " + ", ".join(self.keys)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema that enters. Raises PipelineError for a key or a clock that is not there or of a wrong type."""
        faults: list[str] = []
        try:
            column_indices(self.keys, schema, stage="dedup")
        except PipelineError as error:
            faults += error.faults
        faults += self._window_faults(schema) + exactness_faults(self.exact)
        if faults:
            raise PipelineError(faults)
        return schema

    def _window_faults(self, schema: pa.Schema) -> list[str]:
        if isinstance(self.within, timedelta):
            if self.within <= timedelta(0):
                return [f"dedup: within= must be above zero, found {self.within}"]
            if self.by is None:
                return ["dedup: within= a timedelta needs by=, the column with the event time"]
            if self.by not in schema.names:
                return [f"dedup: {missing_column(self.by, schema.names)}"]
            if not pa.types.is_timestamp(schema.field(self.by).type):
                return [f'dedup: by="{self.by}" must be a timestamp, found {schema.field(self.by).type}']
            return []
        if self.by is not None:
            return ["dedup: by= goes with within= a timedelta"]
        if self.within is not None and (not isinstance(self.within, int) or not 0 < self.within < 2**31):
            return [f"dedup: within= must be a timedelta or from 1 to 2**31 - 1 rows, found {self.within!r}"]
        return []

    def fingerprint(self) -> StageState:
        """Keys and window are fixed for an incarnation: what was forgotten cannot come back."""
        within = self.within.total_seconds() if isinstance(self.within, timedelta) else self.within
        unit = "seconds" if isinstance(self.within, timedelta) else "rows"
        exact = {} if self.exact == "fingerprint" else {"exact": self.exact}
        return {"keys": list(self.keys), "within": within, "unit": unit, "by": self.by} | exact

    def open(self, schema: pa.Schema, surroundings: Surroundings) -> "DedupTransform":
        """The window of keys in one lane."""
        return DedupTransform(self, schema, surroundings)


class DedupTransform:
    """A window of keys at work. Probes run on a worker, one at a time: the marks are final at the probe."""

    concurrency = 1

    def __init__(self, stage: Dedup, schema: pa.Schema, surroundings: Surroundings) -> None:
        self._name = stage.name
        self._surroundings = surroundings
        self._duplicates = 0
        self._null_keys = 0
        self._window = KeyWindow(
            column_indices(stage.keys, schema, stage="dedup"),
            by=None if stage.by is None else schema.get_field_index(stage.by),
            within=stage.within,
            memory_bytes=surroundings.memory_bytes,
            storage=surroundings.storage,
            directory=surroundings.directory,
            seed=surroundings.seed,
            durable=surroundings.durable,
            background=surroundings.background,
            exact=stage.exact,
            instrument=surroundings.instrument,
            chunk_ids=chunk_ids_of(surroundings.memory_bytes),
        )

    async def process(self, batch: Batch) -> list[Batch]:
        """The batch with its duplicates no longer wanted."""
        return [await self._surroundings.offload(self._probe, batch)]

    def _probe(self, batch: Batch) -> Batch:
        probe = self._on_disk(self._window.probe_batch, batch.rows, batch.selection)
        self._duplicates += probe.duplicates
        self._null_keys += probe.null_keys
        return batch.narrowed(probe.selection, probe.selected)

    def _on_disk(self, fn: Callable[..., T], *args: object) -> T:
        """Call what may touch the window's files. Raises StateError where the file system refuses."""
        try:
            return fn(*args)
        except CorruptState as error:
            if self._surroundings.durable:
                error.add_note("  Or rebuild it from the sources: engine checkpoint repair MODULE:PIPELINE --state DIR")
            raise
        except OSError as error:
            raise StateError(
                f"{self._name}: the keys in {self._surroundings.directory} cannot be read or written: {error}\n"
                "  Everything before the last commit is safe. Make room or mend the disk, and run again."
            ) from error

    async def snapshot(self) -> StageState:
        """The keys seen so far, durable."""
        return await self._surroundings.offload(self._on_disk, self._window.snapshot)

    async def restore(self, state: StageState) -> None:
        """Exactly the keys that ``snapshot`` described. Raises CorruptState."""
        await self._surroundings.offload(self._on_disk, self._window.restore, state)

    async def release(self, state: StageState) -> None:
        """Delete files that only checkpoints before ``state`` need."""
        await self._surroundings.offload(self._on_disk, self._window.release, state)

    def statistics(self) -> Mapping[str, int]:
        """Rows dropped, rows with a null key, and the bytes that the window holds in memory."""
        return {
            "duplicates": self._duplicates,
            "null_keys": self._null_keys,
            "memory_bytes": self._window.memory_bytes,
        }

    async def close(self) -> None:
        """Release memory and files. What the background does for the window ends first."""
        await self._surroundings.offload(self._window.close)
