"""The window of keys that were seen: exact, within a byte budget, and durable when asked.

Laws
    - A row is dropped iff its key was seen within the window (rows, time or for ever); every sighting counts, the first
      row wins, and a row with a null key component is always kept.
    - A window of rows that fits the budget is in memory whole, and nothing is sealed. Of others the recent keys are in
      memory; before they exceed the budget, the oldest committed ones are sealed into a run on disk, in the background.
      Nothing is forgotten inside the window, and no answer depends on when the background is done.
    - A probe that fails changes nothing: its marks are taken back before the error leaves.
    - Durable: ``snapshot`` names files that are durable by then, ``restore`` brings back exactly that and deletes
      the files of this window that it does not name; files that an earlier snapshot named stay until ``release`` of
      a later one.
    - After an error while files were written, here or in the background, the window refuses further work: what is on
      disk is behind what was marked. The next probe or commit raises what failed in the background.
    - With ``exact="bytes"`` a row is dropped only when its whole key was compared (``exact_keys``); else a key of more
      than 16 bytes is its seeded fingerprint of 128 bits.
    - One owner at a time; the calls may come from any thread.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from engine._core.dedup import Counts, DedupWindow
from engine._core.hash import key_ids
from engine.background import Background
from engine.errors import InputError, StateError
from engine.instrument import SILENT, Instrument
from engine.stages.exact_keys import FINGERPRINT_BITS, ExactKeys, KeyedBatch
from engine.stages.id_log import IdLog
from engine.stages.id_runs import IdRuns
from engine.stages.key_store import KeyStore
from engine.storage import Storage

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "WINDOW_FORMAT",
    "Exactness",
    "KeyWindow",
    "Probe",
    "WindowState",
    "WindowStatistics",
    "chunk_ids_of",
    "exactness_faults",
]

Exactness = Literal["fingerprint", "bytes"]
"""What of a key longer than 16 bytes must be equal for a row to be dropped."""

WindowState = dict[str, Any]
"""A JSON-able description of a window: counters, marks, and the names of the files that hold its ids."""

CHUNK_IDS = 65_536
"""Ids that the ring takes from memory at once (1 MiB), and the fewest that make a run."""

NO_CLOCK = -(2**63)
"""A clock value that says nothing: the row does not move the clock."""

_SEAL_FROM = 5 / 8
"""The share of the budget at which the next run is sealed, in the background."""

_SEAL_BY = 3 / 4
"""The share at which a commit waits for the seal. The rest is what sealing and merging need themselves."""

_ID_BYTES = 16
_BUCKET_BYTES = 64
_FULLEST = 7
"""Hints a bucket, of ten that it has room for, above which a table would cost more than sealing."""

_OVERFLOW_SHARE = 1 / 16
"""The share of the table's bytes that overflow buckets may come to."""

_FILTER_SHARE = 3 / 8
"""The share that filters in memory may take where they do not come on top."""

_KEYS_SHARE = 1 / 4
"""The share that full keys in memory may take where the budget is short."""

WINDOW_FORMAT = 1
WINDOW_FILES = re.compile(r"(ids|keys)-\d{20}\.log|run-\d{20}-\d{20}\.ids(\.tmp)?")


def chunk_ids_of(memory_bytes: int) -> int:
    """Ids a chunk for a budget: 131,072 are 2 MiB, a huge page; fewer, so that a small budget holds several chunks."""
    fitting = memory_bytes // (32 * 8)  # a key takes about 32 bytes
    return max(1_024, min(131_072, 1 << max(0, fitting.bit_length() - 1)))


def whole_window_table_bytes(within: int, memory_bytes: int, chunk_ids: int) -> int | None:
    """How large the hint table may grow so that the last ``within`` rows fit the budget; None where they cannot.

    Beside the window the ring holds a batch that is not committed, the chunk that is being emptied, and a spare one.
    """
    left = memory_bytes - (within + 4 * chunk_ids) * _ID_BYTES
    table_bytes = left - int(left * _OVERFLOW_SHARE)
    return table_bytes if table_bytes >= within * _BUCKET_BYTES / _FULLEST else None


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found. ``selection`` has one byte a row: 1 for rows that were wanted and are no duplicates.

    ``selected`` counts those: ``fresh`` ones with a key, and ``null_keys`` without. ``duplicates`` were dropped.
    """

    selection: bytearray
    selected: int
    fresh: int
    duplicates: int
    null_keys: int


@dataclass(frozen=True, slots=True)
class WindowStatistics:
    """Counters of committed probes, and sizes as of now.

    ``rows`` were probed; ``duplicates`` dropped, found among recent keys or in runs; ``null_keys`` kept.
    ``run_lookups`` are the times that a filter could not clear a row, ``suspects_cleared`` those in which the run
    did not hold its key either; ``evictions`` are the positions that were sealed or fell out of the window.
    ``merges_postponed`` counts merges for which the disk had no room; they are tried again. ``key_bytes`` and
    ``key_disk_bytes`` are those of full keys, in memory and on disk.
    """

    rows: int
    duplicates: int
    null_keys: int
    exact_hits_recent: int
    exact_hits_runs: int
    run_lookups: int
    suspects_cleared: int
    evictions: int
    recent_bytes: int
    filter_bytes: int
    index_bytes: int
    disk_bytes: int
    runs: int
    merges: int
    merges_postponed: int
    key_bytes: int
    key_disk_bytes: int


class KeyWindow:
    """The window over the key columns with the given indices.

    Args:
      columns: indices of the key columns in every batch. by: index of the timestamp column that is the clock of a
      window of time. A null there does not move the clock. within: so many rows with a key, a time (to the
      microsecond), or None for ever. memory_bytes: the budget for recent keys, block indices and what sealing and
      merging need; a few MiB at least. filters_on_top: whether the filters of sealed runs (2 bytes a key) come on
      top of it; else they are part of it, and
        those that do not fit stay on disk.
      directory: where files go; made when the first one is written. It may be shared only with other kinds of files.
      seed: 16 secret bytes.
      durable: whether ids are logged, so that ``snapshot`` and ``restore`` work across processes.
      exact: whether fingerprints are enough for keys that are longer than an id. Full keys are part of the budget.
      start: the position of the first row; chunk_ids, hint_bits: as in the kernel; fingerprint_bits: fewer make keys
        collide. For tests.
    """

    def __init__(
        self,
        columns: Sequence[int],
        *,
        by: int | None = None,
        within: int | timedelta | None = None,
        memory_bytes: int,
        storage: Storage,
        directory: str,
        seed: bytes,
        durable: bool,
        background: Background,
        filters_on_top: bool = False,
        exact: Exactness = "fingerprint",
        instrument: Instrument = SILENT,
        start: int = 0,
        chunk_ids: int = CHUNK_IDS,
        hint_bits: int = 32,
        fingerprint_bits: int = FINGERPRINT_BITS,
    ) -> None:
        self._columns = tuple(columns)
        self._by = by
        self._within = within // timedelta(microseconds=1) if isinstance(within, timedelta) else within
        self._timed = isinstance(within, timedelta)
        self._memory_bytes = memory_bytes
        self._storage = storage
        self._directory = directory
        self._durable = durable
        self._background = background
        self._filters_on_top = filters_on_top
        self._compares_bytes = exact == "bytes"
        self._instrument = instrument
        self._start = start
        self._chunk_ids = chunk_ids
        self._hint_bits = hint_bits
        self._fingerprint_bits = fingerprint_bits
        self._failed = False
        self._directory_ready = False
        self._begin(seed, start)

    def _begin(self, seed: bytes, position: int) -> None:
        self._seed = seed
        table_bytes = None
        if self._within is not None and not self._timed and not self._compares_bytes:
            table_bytes = whole_window_table_bytes(self._within, self._memory_bytes, self._chunk_ids)
        self._seal_from_bytes = self._memory_bytes * (_SEAL_FROM if table_bytes is None else 1)
        self._seal_by_bytes = self._memory_bytes * (_SEAL_BY if table_bytes is None else 1)
        self._window = DedupWindow(
            seed=seed,
            within=self._within,
            timed=self._timed,
            start=position,
            chunk_ids=self._chunk_ids,
            hint_bits=self._hint_bits,
            table_bytes=table_bytes,
        )
        self._runs = IdRuns(
            self._storage,
            self._directory,
            seed,
            durable=self._durable,
            background=self._background,
            filter_limit_bytes=None if self._filters_on_top else int(self._memory_bytes * _FILTER_SHARE),
            buffer_bytes=self._memory_bytes // 10,
            instrument=self._instrument,
        )
        self._log = IdLog(self._storage, self._directory, seed)
        self._exact: ExactKeys | None = None
        if self._compares_bytes:
            self._exact = ExactKeys(seed, self._new_store, fingerprint_bits=self._fingerprint_bits)

    def _new_store(self, start: int) -> KeyStore:
        return KeyStore(
            self._storage,
            self._directory,
            self._seed,
            start,
            durable=self._durable,
            memory_bytes=self._memory_bytes,
            prepare=lambda: self._prepare_directory(()),
        )

    @property
    def _keys(self) -> KeyStore | None:
        return None if self._exact is None else self._exact.store

    @property
    def memory_bytes(self) -> int:
        """Bytes of recent keys, filters and block indices in memory."""
        return self._own_bytes() + self._runs.filter_bytes

    def _own_bytes(self) -> int:
        key_bytes = 0 if self._keys is None else self._keys.memory_bytes
        return self._window.recent_bytes + self._runs.index_bytes + key_bytes

    def set_columns(self, columns: Sequence[int], by: int | None) -> None:
        """Where key and clock columns are from now on."""
        self._columns = tuple(columns)
        self._by = by

    def probe_batch(self, rows: pa.RecordBatch, selection: "Buffer | None" = None) -> Probe:
        """Mark the keys of the wanted rows as seen, for good, and tell which rows remain wanted.

        Raises InputError for clock values that do not fit, CorruptState for a damaged run, OSError for a full disk.
        """
        token, probe = self.probe_open(rows, selection)
        self.commit(token)
        return probe

    def probe_open(self, rows: pa.RecordBatch, selection: "Buffer | None" = None) -> tuple[int, Probe]:
        """As ``probe_batch``, but the marks wait for ``commit`` or ``abort`` of the token."""
        self._check_usable()
        identities = key_ids(rows, self._columns, self._seed)
        clock = _clock_values(rows, self._by) if self._timed and self._by is not None else None
        if self._exact is not None:
            first = self._window.tail
            batch = self._exact.enter(rows, self._columns, identities, selection, first)
            if batch is not None:
                return self._probe_exact(self._exact, batch, rows.num_rows, selection, clock)
        return self.probe_ids(identities.ids, rows.num_rows, keyed=identities.keyed, selection=selection, clock=clock)

    def _probe_exact(
        self, exact: ExactKeys, batch: KeyedBatch, rows: int, selection: "Buffer | None", clock: "Buffer | None"
    ) -> tuple[int, Probe]:
        """Probe until every duplicate's full key is that of its last sighting: once, but for colliding fingerprints."""
        try:
            while True:
                ids = exact.ids(batch)
                token, probe = self.probe_ids(ids, rows, keyed=batch.keyed, selection=selection, clock=clock)
                try:
                    if not probe.duplicates or exact.settle(batch, self._window.duplicates(), self._id_at):
                        return token, probe
                except BaseException:
                    self._window.abort(token)
                    raise
                self._window.abort(token)
        except BaseException:
            exact.truncate(batch.first)
            raise

    def _id_at(self, position: int) -> bytes:
        return self._window.ids(position, position + 1)

    def probe_ids(
        self,
        ids: "Buffer",
        rows: int,
        *,
        keyed: "Buffer | None" = None,
        selection: "Buffer | None" = None,
        clock: "Buffer | None" = None,
    ) -> tuple[int, Probe]:
        """As ``probe_open``, for 16-byte identities in place of rows."""
        self._poll()
        token, mask = self._window.probe(ids, rows, keyed=keyed, selection=selection, clock=clock)
        try:
            if len(self._runs):
                self._runs.ask(self._window)
            counts = self._window.last_counts()
        except BaseException:
            self._window.abort(token)
            raise
        selected = counts.rows - counts.duplicates
        probe = Probe(mask, selected, selected - counts.null_keys, counts.duplicates, counts.null_keys)
        return token, probe

    def commit(self, token: int) -> None:
        """Make the marks of the oldest open token final. Raises ValueError for another token."""
        self._check_usable()
        self._poll()
        oldest = self._window.oldest_token
        if oldest is None or oldest[0] != token:
            raise ValueError(f"token {token} is not the oldest open token; tokens commit in the order of their probes")
        first, stop = self._window.committed, oldest[1]
        self._failed = True
        if self._durable and stop > first:
            self._prepare_directory(())
            self._log.append(first, self._window.ids(first, stop))
        self._window.commit(token)
        self._fit()
        self._failed = False

    def abort(self, token: int) -> None:
        """Take back the marks of a token and of every later one. Raises ValueError unless it is open."""
        self._window.abort(token)
        if self._exact is not None:
            self._exact.truncate(self._window.tail)

    def _poll(self) -> None:
        """Let what the background has done take its place. Raises what failed there."""
        failed, self._failed = self._failed, True
        self._runs.poll(self._window)
        self._failed = failed

    def _fit(self) -> None:
        """Drop what fell out of the window; seal where recent keys near the budget, and wait where they reach it."""
        self._runs.drop_expired(self._window)
        if self._keys is not None:
            self._fit_keys(self._keys)
        while (taken := self._budgeted_bytes()) > self._seal_from_bytes:
            if not self._runs.sealing:
                stop = self._seal_stop()
                if stop is None:
                    break
                self._prepare_directory(())
                self._runs.seal(self._window, stop)
            elif taken > self._seal_by_bytes:
                self._runs.finish_seal(self._window)
            else:
                break
        self._log.drop_below(self._window.oldest)

    def _fit_keys(self, keys: KeyStore) -> None:
        committed = self._window.committed
        keys.drop_below(min(self._window.horizon, committed))
        keys.commit(committed)
        if self._budgeted_bytes() > self._seal_from_bytes:
            keys.shrink(int(self._memory_bytes * _KEYS_SHARE), committed)

    def _budgeted_bytes(self) -> int:
        return self._own_bytes() + (0 if self._filters_on_top else self._runs.filter_bytes)

    def _seal_stop(self) -> int | None:
        """Where the next run ends: after a quarter of the recent keys, at a chunk's border; None with too few keys."""
        oldest, committed = self._window.oldest, self._window.committed
        wanted = oldest + max(self._chunk_ids, (committed - oldest) // 4)
        stop = -(-wanted // self._chunk_ids) * self._chunk_ids
        return stop if stop <= committed else None

    def _prepare_directory(self, keep: Sequence[str]) -> None:
        """Make the directory, and remove files that a window before this one left in it."""
        if self._directory_ready:
            return
        self._storage.make_directory(self._directory)
        for name in self._storage.list(self._directory):
            if WINDOW_FILES.fullmatch(name) and name not in keep:
                self._storage.unlink(os.path.join(self._directory, name))
        self._directory_ready = True

    def _check_usable(self) -> None:
        if self._failed:
            remedy = "restore the last checkpoint" if self._durable else "restore(snapshot) or begin anew"
            raise StateError(f"dedup: an earlier error left this window behind its files; {remedy}.")

    def describe(self) -> WindowState:
        """The committed window without its files."""
        return {
            "format": WINDOW_FORMAT,
            "seed": self._seed.hex(),
            "within": self._within,
            "timed": self._timed,
            "oldest": self._window.oldest,
            "tail": self._window.committed,
            "evictions": self._window.oldest - self._start,
            "suspects_cleared": self._runs.suspects_cleared,
            "horizon": self._window.horizon_state(),
        }

    def snapshot(self) -> WindowState:
        """Make the committed window durable and describe it. Raises StateError unless ``durable``, OSError."""
        self._check_usable()
        if not self._durable:
            raise StateError("dedup: this window is not durable and has no snapshot")
        self._failed = True
        segments = self._log.sync()
        runs = self._runs.make_durable()
        exact = {} if self._exact is None else {"exact": self._exact.snapshot(self._window.committed)}
        self._failed = False
        return self.describe() | {"segments": segments, "runs": runs} | exact

    def restore(self, state: WindowState) -> None:
        """Become the window that ``snapshot`` described. Raises CorruptState, or StateError where it does not fit."""
        self._restore_description(state)
        self._prepare_directory(_file_names(state))
        self._failed = True
        if self._exact is not None:
            self._exact.restore(state["exact"])
        self._runs.restore(state["runs"], self._window)
        for first, ids in self._log.restore(state["segments"], state["oldest"]):
            if first != self._window.tail:
                raise StateError(f"dedup: ids of the positions from {self._window.tail:,} to {first:,} are missing")
            self._window.replay(ids)
        self._finish_restore(state)

    def _restore_description(self, state: WindowState) -> None:
        if state.get("format") != WINDOW_FORMAT:
            raise StateError(f"dedup: state of format {state.get('format')}; this version reads {WINDOW_FORMAT}.")
        if (state["within"], state["timed"]) != (self._within, self._timed):
            raise StateError(
                "dedup: the state is that of another window (within=); start anew or restore the pipeline."
            )
        if ("exact" in state) != self._compares_bytes:
            raise StateError("dedup: the state is that of a window with another exact=; start anew.")
        if self._window.tail != self._start or self._directory_ready:
            raise StateError("dedup: a window that has seen rows cannot be restored")
        self._start = state["oldest"] - state["evictions"]
        self._begin(bytes.fromhex(state["seed"]), state["oldest"])

    def _finish_restore(self, state: WindowState) -> None:
        if self._window.tail != state["tail"]:
            raise StateError(f"dedup: the id log ends at {self._window.tail:,}, the checkpoint at {state['tail']:,}")
        self._window.restore_horizon(state["horizon"])
        self._runs.suspects_cleared = state["suspects_cleared"]
        self._failed = False

    def contents(self) -> tuple[WindowState, list[bytes]]:
        """The committed window as a description and bytes that stand alone: the recent ids, then every run's file."""
        self._check_usable()
        runs = self._runs.contents()
        ids = self._window.ids(self._window.oldest, self._window.committed)
        described = self.describe() | {"runs": [state for state, _ in runs]}
        contents = [ids, *(content for _, content in runs)]
        if self._exact is not None:
            described["exact"], keys = self._exact.contents(self._window.committed)
            contents += keys
        return described, contents

    def load(self, state: WindowState, contents: Sequence[bytes]) -> None:
        """Become the window that ``contents`` gave. Raises CorruptState, or StateError where it does not fit."""
        self._restore_description(state)
        ids, *others = contents
        files, keys = others[: len(state["runs"])], others[len(state["runs"]) :]
        self._failed = True
        if files:
            self._prepare_directory(())
        if self._exact is not None:
            self._exact.load(state["exact"], keys)
        for run, content in zip(state["runs"], files, strict=True):
            with self._storage.create(os.path.join(self._directory, run["file"])) as file:
                file.append(content)
        self._runs.restore(state["runs"], self._window, durable=False)
        self._window.replay(ids)
        self._finish_restore(state)

    def release(self, state: WindowState) -> None:
        """The snapshot ``state`` is final: delete the files that only earlier ones need. Raises OSError."""
        self._log.release(state["segments"])
        self._runs.release(state["runs"])
        if self._exact is not None:
            self._exact.release(state["exact"])

    def statistics(self) -> WindowStatistics:
        """Counters of committed probes, and sizes as of now."""
        counts: Counts = self._window.counts
        return WindowStatistics(
            rows=counts.rows,
            duplicates=counts.duplicates,
            null_keys=counts.null_keys,
            exact_hits_recent=counts.recent_hits,
            exact_hits_runs=counts.run_hits,
            run_lookups=counts.run_lookups,
            suspects_cleared=self._runs.suspects_cleared,
            evictions=self._window.oldest - self._start,
            recent_bytes=self._window.recent_bytes,
            filter_bytes=self._runs.filter_bytes,
            index_bytes=self._runs.index_bytes,
            disk_bytes=self._runs.disk_bytes + self._log.size_bytes,
            runs=len(self._runs),
            merges=self._runs.merges,
            merges_postponed=self._runs.merges_postponed,
            key_bytes=0 if self._keys is None else self._keys.memory_bytes,
            key_disk_bytes=0 if self._keys is None else self._keys.disk_bytes,
        )

    def close(self) -> None:
        """Close the files; they stay. Harmless when repeated."""
        self._failed = True
        self._log.close()
        self._runs.close()
        if self._exact is not None:
            self._exact.close()


def exactness_faults(exact: object) -> list[str]:
    """What is wrong with an ``exact=`` argument."""
    allowed = get_args(Exactness)
    if exact in allowed:
        return []
    return [f"dedup: exact= must be {' or '.join(map(repr, allowed))}, found {exact!r}"]


def _file_names(state: WindowState) -> list[str]:
    """The files that a snapshot names."""
    keys = state.get("exact", {}).get("keys") or {"segments": []}
    return [entry["file"] for entry in [*state["segments"], *state["runs"], *keys["segments"]]]


def _clock_values(rows: pa.RecordBatch, column: int) -> "Buffer":
    """The clock column as int64 microseconds. Raises InputError."""
    values = rows.column(column)
    name = rows.schema.field(column).name
    if not pa.types.is_timestamp(values.type):
        raise InputError(f'dedup: by="{name}" must be a timestamp, found {values.type}')
    finer = values.type.unit == "ns"
    try:
        micros = pc.cast(values, pa.timestamp("us", values.type.tz), safe=not finer).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(f'dedup: by="{name}" holds a time outside the years that microseconds can say') from error
    filled: Any = micros.fill_null(NO_CLOCK) if micros.null_count else micros
    numbers: Buffer = filled.to_numpy(zero_copy_only=False)
    return numbers
