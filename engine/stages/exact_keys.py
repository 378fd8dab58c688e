"""Full keys beside a window that works with 16-byte ids: a row is dropped only when its whole key was compared.

Laws
    - Every dropped row's key is held against the key at the last sighting of its id. Nearly always all are equal.
    - Where one differs, two keys share a fingerprint: the probe is taken back, the later key gets an id of its own
      (``collisions``) from the row on at which that was noticed, and the batch is probed again. Everything before that
      row stays as it was, so the lowest such row is dealt with first, and there are at most as many rounds as rows.
    - Keys that are their own ids by the types of their columns are compared by them, and nothing is kept for them;
      keeping keys begins with the first batch of others.
    - One owner at a time.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine._core.hash import KeyIds
from engine.stages.collisions import Collisions, CollisionsState
from engine.stages.key_store import KeyStore, KeyStoreState

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ExactKeys", "ExactKeysState", "KeyedBatch"]

FINGERPRINT_BITS = 128


class ExactKeysState(TypedDict):
    """Keys and collisions as a snapshot names them; no keys where all are their own ids."""

    keys: KeyStoreState | None
    collisions: CollisionsState


class KeyedBatch:
    """The rows of one batch that take positions from ``first`` on."""

    def __init__(self, identities: KeyIds, rows: int, selection: "Buffer | None", first: int, bits: int) -> None:
        self.keyed = identities.keyed
        self.first = first
        self.fingerprints: Buffer = identities.ids
        self._rows = rows
        self._selection = selection
        if bits < FINGERPRINT_BITS and not identities.whole:
            self.fingerprints = _shortened(identities.ids, bits)

    def places(self) -> NDArray[np.intp]:
        """The row of each position."""
        wanted = np.ones(self._rows, np.bool_)
        for flags in (self.keyed, self._selection):
            if flags is not None:
                wanted &= np.frombuffer(memoryview(flags), np.uint8, self._rows) != 0
        return np.flatnonzero(wanted)

    def fingerprint_of(self, row: int) -> bytes:
        """The fingerprint of a row's key."""
        return bytes(memoryview(self.fingerprints)[row * 16 : row * 16 + 16])


class ExactKeys:
    """The full keys of one window. ``new_store`` makes the store for keys from a position on.

    ``fingerprint_bits`` below 128 make keys collide, for tests.
    """

    def __init__(self, seed: bytes, new_store: Callable[[int], KeyStore], *, fingerprint_bits: int) -> None:
        self._new_store = new_store
        self._bits = fingerprint_bits
        self._store: KeyStore | None = None
        self._collisions = Collisions(seed)

    @property
    def store(self) -> KeyStore | None:
        """The keys; None while all were their own ids."""
        return self._store

    @property
    def collisions(self) -> int:
        """How often a key met another under its id."""
        return len(self._collisions)

    def enter(
        self, rows: pa.RecordBatch, columns: Sequence[int], identities: KeyIds, selection: "Buffer | None", first: int
    ) -> KeyedBatch | None:
        """Keep the keys of a batch whose rows take the positions from ``first`` on.

        None where its ids are the keys, as those of all rows before it were. Raises MemoryError; nothing is kept then.
        """
        if self._store is None:
            if identities.whole:
                return None
            self._store = self._new_store(first)
        if identities.whole:
            self._store.append_ids(identities.ids, identities.keyed, selection)
        else:
            self._store.append(rows, columns, identities.keyed, selection)
        return KeyedBatch(identities, rows.num_rows, selection, first, self._bits)

    def ids(self, batch: KeyedBatch) -> "Buffer":
        """What the window must be asked with."""
        if not self._collisions or self._store is None:
            return batch.fingerprints
        suspects = self._collisions.suspects(batch.fingerprints)
        if not len(suspects):
            return batch.fingerprints
        ids = bytearray(batch.fingerprints)
        places = batch.places()
        for index in np.flatnonzero(np.isin(places, suspects)).tolist():
            row, position = int(places[index]), batch.first + index
            key = self._store.key(position)
            ids[row * 16 : row * 16 + 16] = self._collisions.id_of(batch.fingerprint_of(row), key, position)
        return ids

    def settle(self, batch: KeyedBatch, duplicates: bytes, ids: Callable[[int], bytes]) -> bool:
        """Whether every duplicate's key is that of the sighting before; else the probe must be made again.

        ``duplicates`` are pairs (position, previous), ``ids`` gives the id of a position. Raises CorruptState.
        """
        assert self._store is not None
        differing = self._store.compare(duplicates, ids)
        if differing is None:
            return True
        row = int(batch.places()[differing - batch.first])
        self._collisions.add(batch.fingerprint_of(row), self._store.key(differing), differing)
        return False

    def truncate(self, position: int) -> None:
        """Rows from ``position`` on were taken back."""
        self._collisions.truncate(position)
        if self._store is None:
            return
        if position > self._store.start:
            self._store.truncate(position)
        else:  # it holds nothing that is committed
            self._store.close()
            self._store = None

    def _describe(self, committed: int, keys: KeyStoreState | None) -> ExactKeysState:
        return ExactKeysState(keys=keys, collisions=self._collisions.describe(committed))

    def snapshot(self, committed: int) -> ExactKeysState:
        """Make the committed keys durable and describe them."""
        store = self._committed_store(committed)
        return self._describe(committed, None if store is None else store.snapshot(committed))

    def _committed_store(self, committed: int) -> KeyStore | None:
        return self._store if self._store is not None and self._store.start < committed else None

    def restore(self, state: ExactKeysState) -> None:
        """Become what ``snapshot`` described. Raises CorruptState."""
        self._collisions.restore(state["collisions"])
        if state["keys"] is not None:
            self._store = self._new_store(state["keys"]["start"])
            self._store.restore(state["keys"])

    def release(self, state: ExactKeysState) -> None:
        """A snapshot with these keys is final: delete files that only earlier ones need."""
        if self._store is not None and state["keys"] is not None:
            self._store.release(state["keys"])

    def contents(self, committed: int) -> tuple[ExactKeysState, list[bytes]]:
        """The committed keys as a description and bytes that stand alone."""
        store = self._committed_store(committed)
        if store is None:
            return self._describe(committed, None), []
        keys, contents = store.contents(committed)
        return self._describe(committed, keys), contents

    def load(self, state: ExactKeysState, contents: Sequence[bytes]) -> None:
        """Become what ``contents`` gave. Raises CorruptState."""
        self._collisions.restore(state["collisions"])
        if state["keys"] is not None:
            self._store = self._new_store(state["keys"]["start"])
            self._store.load(state["keys"], contents)

    def close(self) -> None:
        """Close the files; they stay. Harmless when repeated."""
        if self._store is not None:
            self._store.close()


def _shortened(ids: "Buffer", bits: int) -> "Buffer":
    """Fingerprints of so few bits that keys collide."""
    halves = np.frombuffer(memoryview(ids), np.uint64).reshape(-1, 2).copy()
    halves[:, 0] &= np.uint64((1 << bits) - 1)
    halves[:, 1] = 0
    return halves.tobytes()
