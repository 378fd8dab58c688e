"""``Deduplicator``: exact deduplication of Arrow batches without a pipeline, with tokens that commit or abort.

Laws
    - A probe sees committed and pending keys. Tokens commit in the order of their probes; aborting one aborts every
      later. No number is given twice: a token from before ``restore`` is not open after it.
    - A snapshot holds committed keys only, stands alone, and is checksummed; restoring it gives the same answers.
    - Files lie in a private directory, made when memory is short, removed by ``close``.
    - Calls take turns: threads may share one.
    - It belongs to the process that made it: a forked child has neither its thread nor its files, and only closes it.

Snapshot (little-endian): magic, format version, bytes of the JSON head, the head, the recent ids, the runs' files,
CRC32C of everything before it.
"""

import itertools
import json
import os
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Protocol, Self, TypeVar, cast

import numpy as np
import pyarrow as pa

from engine._core.crc32c import crc32c
from engine.background import BackgroundThread
from engine.byte_size import ByteSize, parse_bytes
from engine.errors import CorruptState, InputError, PipelineError, StateError, missing_column
from engine.nature import random_id
from engine.stages.hash_partitioner import Keys, key_names
from engine.stages.key_window import (
    Exactness,
    KeyWindow,
    WindowState,
    WindowStatistics,
    chunk_ids_of,
    exactness_faults,
)
from engine.storage import Storage

__all__ = ["Deduplicated", "Deduplicator"]

P = ParamSpec("P")
T = TypeVar("T")

_MAGIC = b"engdedup"
_VERSION = 1
_HEAD = struct.Struct("<8sII")


class ArrowArrayExporter(Protocol):
    """Any object with the Arrow C data interface of a struct array: a record batch of any library."""

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        """Give the schema and array capsules."""


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """What ``probe`` found in one batch."""

    mask: pa.BooleanArray
    """True for rows to keep: the first of their key in the window, and rows with a null key component."""

    fresh: int
    """Rows with a key that was not in the window."""

    duplicates: int
    null_keys: int
    token: int
    """For ``commit`` or ``abort``."""


def _in_turn(method: Callable[Concatenate["Deduplicator", P], T]) -> Callable[Concatenate["Deduplicator", P], T]:
    """Let threads call one after the other: the window itself has a single owner, and its kernels let go of the GIL."""

    @wraps(method)
    def locked(self: "Deduplicator", /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_owner()  # first: in a forked child the turn may be taken for ever
        with self._turn:
            return method(self, *args, **kwargs)

    return locked


class Deduplicator:
    """Tells which rows were seen before: exactly, within a window, within a byte budget.

    ``keys`` names the columns that identify a row; ``within`` is the window: the last n rows with a key, a time on the
    timestamp column ``by``, or None for ever. A time is forgotten after at most 65/64 of it: a row up to 1/64 beyond
    the window may still be dropped, one inside is never missed. ``memory`` bounds what recent keys, block indices and
    the work on files take; older keys go to files below ``spill`` (default: the system's temporary directory), about 26
    bytes a key, removed by ``close``. The files' Bloom filters come on top of ``memory``: 2 bytes a key, reported by
    ``statistics``. A background thread writes and merges the files; while it merges, there are a third more of files
    and filters at most.

    Keys of up to 16 bytes of numbers, and single values of exactly 16 bytes, are their own identities. Others are known
    by a fingerprint of 128 bits under a secret seed, or with ``exact="bytes"`` by all their bytes: these are kept as
    long as the key is in the window, within ``memory``, and those that do not fit in files.

    Raises PipelineError for arguments that make no sense. Threads may share it: their calls take turns. A forked child
    may not: there every call raises StateError, and ``close`` leaves the files to the process that made them.

    >>> with Deduplicator("id", within=1_000_000) as seen:
    ...     probe = seen.probe(batch)
    ...     deliver(batch.filter(probe.mask))
    ...     seen.commit(probe.token)
    """

    def __init__(
        self,
        keys: Keys,
        *,
        within: int | timedelta | None = None,
        by: str | None = None,
        memory: ByteSize = "256MiB",
        spill: str | os.PathLike[str] | None = None,
        exact: Exactness = "fingerprint",
    ) -> None:
        self._keys = key_names(keys, stage="dedup")
        self._within = within
        self._by = by
        self._memory_bytes = parse_bytes(memory)
        self._exact = exact
        _check_arguments(within, by, spill, exact)
        self._storage = Storage()
        parent = tempfile.gettempdir() if spill is None else os.fspath(spill)
        self._directory = os.path.join(parent, f"engine-dedup-{random_id()}")
        self._schema: pa.Schema | None = None
        self._columns: tuple[int, ...] = ()
        self._clock: int | None = None
        self._closed = False
        self._tokens = itertools.count(1)
        self._open: dict[int, int] = {}  # the window's token of each of ours, in the order of the probes
        self._owner_pid = os.getpid()
        self._turn = threading.RLock()
        self._background = BackgroundThread("engine-dedup")
        self._window = self._new_window()

    def _new_window(self) -> KeyWindow:
        return KeyWindow(
            self._columns,
            by=self._clock,
            within=self._within,
            memory_bytes=self._memory_bytes,
            storage=self._storage,
            directory=self._directory,
            seed=bytes.fromhex(random_id()),
            durable=False,
            background=self._background,
            exact=self._exact,
            filters_on_top=True,
            chunk_ids=chunk_ids_of(self._memory_bytes),
        )

    @_in_turn
    def probe(self, batch: ArrowArrayExporter) -> Deduplicated:
        """Mark the keys of a batch as seen, pending its token, and tell which rows to keep.

        ``batch`` is a record batch, or any object with ``__arrow_c_array__`` of a struct. Raises InputError for a
        missing or doubled column, CorruptState for a damaged spill file, OSError for a full disk (both also where the
        background met them), MemoryError; then nothing is marked. What failed in the background, or in ``commit``, is
        final: from then on StateError, until an earlier snapshot is restored.
        """
        self._check_open()
        rows = _record_batch(batch)
        self._find_columns(rows.schema)
        window_token, found = self._window.probe_open(rows)
        token = next(self._tokens)
        self._open[token] = window_token
        return Deduplicated(_boolean_array(found.selection), found.fresh, found.duplicates, found.null_keys, token)

    def _find_columns(self, schema: pa.Schema) -> None:
        if schema is self._schema or schema == self._schema:
            return
        names = schema.names
        for name in (*self._keys, *(() if self._by is None else (self._by,))):
            if name not in names:
                raise InputError(f"dedup: {missing_column(name, names)}")
            if (count := names.count(name)) > 1:
                raise InputError(f'dedup: column "{name}" is there {count} times; rename or select first')
        self._columns = tuple(names.index(name) for name in self._keys)
        self._clock = None if self._by is None else names.index(self._by)
        self._window.set_columns(self._columns, self._clock)
        self._schema = schema

    @_in_turn
    def commit(self, token: int) -> None:
        """Make the marks of a token final. Raises ValueError unless it is the oldest open one.

        Raises OSError for a full disk and CorruptState for a damaged spill file, also where the background met them.
        Then the files are behind what was marked, and probe, commit and snapshot raise StateError: ``restore`` an
        earlier snapshot, which wants room for its files, or begin anew.
        """
        self._check_open()
        self._check_token(token)
        if token != next(iter(self._open)):
            raise ValueError(f"token {token} is not the oldest open token; tokens commit in the order of their probes")
        self._window.commit(self._open[token])
        del self._open[token]

    @_in_turn
    def abort(self, token: int) -> None:
        """Take back the marks of a token and of every later one. Raises ValueError unless it is open."""
        self._check_open()
        self._check_token(token)
        self._window.abort(self._open[token])
        self._open = {earlier: known for earlier, known in self._open.items() if earlier < token}

    def _check_token(self, token: object) -> None:
        if type(token) is not int or token not in self._open:  # 1.0 and True are found as 1
            raise ValueError(f"token {token!r} is not open")

    @_in_turn
    def snapshot(self) -> bytes:
        """The committed keys, for ``restore`` in this or another process. Raises StateError after a full disk."""
        self._check_open()
        state, contents = self._window.contents()
        state |= {"keys": list(self._keys), "by": self._by, "sizes": [len(content) for content in contents]}
        head = json.dumps(state).encode()
        parts = [_HEAD.pack(_MAGIC, _VERSION, len(head)), head, *contents]
        crc = 0
        for part in parts:
            crc = crc32c(part, crc)
        return b"".join([*parts, struct.pack("<I", crc)])

    @_in_turn
    def restore(self, snapshot: bytes) -> None:
        """Forget everything and become what was snapshotted.

        Raises CorruptState for damaged bytes, StateError for a snapshot of other keys or another window; then nothing
        has changed.
        """
        self._check_open()
        state, contents = _open_snapshot(snapshot)
        if (tuple(state["keys"]), state["by"]) != (self._keys, self._by):
            raise StateError(f"dedup: the snapshot is of keys {state['keys']} by {state['by']}, not {list(self._keys)}")
        window = self._window
        directory = self._directory
        self._directory = os.path.join(os.path.dirname(directory), f"engine-dedup-{random_id()}")
        fresh = self._new_window()
        try:
            fresh.load(state, contents)
        except BaseException:
            fresh.close()
            self._remove(self._directory)
            self._directory = directory
            raise
        self._window = fresh
        self._open.clear()
        window.close()
        self._remove(directory)

    @_in_turn
    def statistics(self) -> WindowStatistics:
        """Counters of committed probes, and sizes as of now."""
        self._check_open()
        return self._window.statistics()

    def close(self) -> None:
        """Forget everything and remove the files. Harmless when repeated, and in a forked child."""
        if self._is_owner():
            self._close()

    @_in_turn
    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._window.close()
            self._background.join()
            self._remove(self._directory)

    def _remove(self, directory: str) -> None:
        if self._storage.exists(directory):
            for name in self._storage.list(directory):
                self._storage.unlink(os.path.join(directory, name))
            self._storage.remove_directory(directory)

    def _is_owner(self) -> bool:
        return os.getpid() == self._owner_pid

    def _check_owner(self) -> None:
        if not self._is_owner():
            raise StateError(
                f"dedup: the deduplicator belongs to process {self._owner_pid}, which forked this one; make one here, "
                "and restore(snapshot) what it has to know."
            )

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("dedup: the deduplicator is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_arguments(within: int | timedelta | None, by: str | None, spill: object, exact: object) -> None:
    if faults := exactness_faults(exact):
        raise PipelineError(faults)
    if not isinstance(spill, str | os.PathLike | None):
        raise PipelineError(f"dedup: spill= must be the path of a directory, found {spill!r}")
    if not isinstance(by, str | None):
        raise PipelineError(f"dedup: by= must name a column, found {by!r}")
    if isinstance(within, timedelta):
        if within <= timedelta(0):
            raise PipelineError(f"dedup: within= must be above zero, found {within}")
        if by is None:
            raise PipelineError("dedup: within= a timedelta needs by=, the column with the event time")
        return
    if by is not None:
        raise PipelineError("dedup: by= goes with within= a timedelta")
    if within is not None and (isinstance(within, bool) or not isinstance(within, int) or not 0 < within < 2**63):
        raise PipelineError(f"dedup: within= must be a timedelta or a number of rows above zero, found {within!r}")


def _boolean_array(selection: bytearray) -> pa.BooleanArray:
    """One bit a byte. By hand: ``pyarrow.array`` looks for pandas first, which costs a third of a second once."""
    bits = np.packbits(np.frombuffer(selection, dtype=np.uint8), bitorder="little").tobytes()
    array = pa.BooleanArray.from_buffers(pa.bool_(), len(selection), [None, pa.py_buffer(bits)])
    return cast(pa.BooleanArray, array)


def _record_batch(batch: ArrowArrayExporter) -> pa.RecordBatch:
    if isinstance(batch, pa.RecordBatch):
        return batch
    if not hasattr(batch, "__arrow_c_array__"):
        kind = type(batch).__name__
        raise InputError(f"dedup: expected a record batch, found {kind}. Pass its batches one by one (to_batches()).")
    try:
        return pa.record_batch(batch)
    except (pa.ArrowInvalid, TypeError, ValueError) as error:
        raise InputError(f"dedup: expected a record batch, found {type(batch).__name__}: {error}") from error


def _open_snapshot(snapshot: bytes) -> tuple[WindowState, list[bytes]]:
    view = memoryview(snapshot)
    if len(view) < _HEAD.size + 4 or bytes(view[:8]) != _MAGIC:
        raise CorruptState("dedup: these bytes are no snapshot", path="snapshot", offset=0)
    _, version, head_bytes = _HEAD.unpack(view[: _HEAD.size])
    if struct.unpack("<I", view[-4:])[0] != crc32c(view[:-4]):
        raise CorruptState("dedup: the snapshot is damaged; take an older one", path="snapshot")
    if version != _VERSION:
        raise StateError(f"dedup: snapshot of format {version}; this version reads format {_VERSION}.")
    state = json.loads(bytes(view[_HEAD.size : _HEAD.size + head_bytes]))
    contents = []
    offset = _HEAD.size + head_bytes
    for size in state["sizes"]:
        contents.append(bytes(view[offset : offset + size]))
        offset += size
    return state, contents
