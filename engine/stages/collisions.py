"""Keys whose fingerprint is another key's too, and the ids that they go by instead.

Laws
    - A key goes by its fingerprint until it meets another key under it; from that position on, for good, by a
      substitute id of its own. So at any time all sightings of an id that still count are of one key, and all
      sightings of a key that still count are of one id.
    - What was seen at a position that is taken back was not seen: ``truncate`` forgets it.
    - Substitutes are made from a counter by a keyed hash of 128 bits; that one meets another id is noticed as for
      any id, and answered by the next substitute.

With 128 bits and a secret seed the table is empty for as long as anybody will watch it. It is what makes "never" true.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Collisions", "CollisionsState"]


class CollisionsState(TypedDict):
    """The table as a snapshot holds it: how many substitutes were made; (fingerprint, key, since, id), bytes in hex."""

    made: int
    entries: list[tuple[str, str, int, str]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """From position ``since`` on the key has this id."""

    since: int
    id: bytes


class Collisions:
    """The table of one window, under its seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._made = 0
        self._entries: dict[bytes, dict[bytes, list[_Entry]]] = {}

    def __len__(self) -> int:
        return sum(len(entries) for keys in self._entries.values() for entries in keys.values())

    def add(self, fingerprint: bytes, key: bytes, since: int) -> None:
        """Give the key the next substitute from position ``since`` on, where it met another key under its id."""
        self._made += 1
        substitute = hashlib.blake2b(self._made.to_bytes(8, "little"), key=self._seed, digest_size=16).digest()
        self._entries.setdefault(fingerprint, {}).setdefault(key, []).append(_Entry(since, substitute))

    def id_of(self, fingerprint: bytes, key: bytes, position: int) -> bytes:
        """The id of a key at a position."""
        entries = self._entries.get(fingerprint, {}).get(key, ())
        return next((entry.id for entry in reversed(entries) if entry.since <= position), fingerprint)

    def suspects(self, ids: "Buffer") -> NDArray[np.intp]:
        """Rows whose fingerprint may be in the table: its lower half is."""
        halves = np.frombuffer(b"".join(self._entries), np.uint64)[::2]
        return np.flatnonzero(np.isin(np.frombuffer(memoryview(ids), np.uint64)[::2], halves))

    def truncate(self, position: int) -> None:
        """Forget what was noticed at ``position`` or later."""
        kept = [entry for entry in self._listed() if entry[2].since < position]
        self._entries = {}
        for fingerprint, key, entry in kept:
            self._entries.setdefault(fingerprint, {}).setdefault(key, []).append(entry)

    def describe(self, committed: int) -> CollisionsState:
        """What was noticed below position ``committed``."""
        listed = [
            (fingerprint.hex(), key.hex(), entry.since, entry.id.hex())
            for fingerprint, key, entry in self._listed()
            if entry.since < committed
        ]
        return CollisionsState(made=self._made, entries=listed)

    def restore(self, state: CollisionsState) -> None:
        """Take over what ``describe`` gave."""
        self._made = state["made"]
        for fingerprint, key, since, substitute in state["entries"]:
            entry = _Entry(since, bytes.fromhex(substitute))
            keys = self._entries.setdefault(bytes.fromhex(fingerprint), {})
            keys.setdefault(bytes.fromhex(key), []).append(entry)

    def _listed(self) -> list[tuple[bytes, bytes, _Entry]]:
        return [
            (fingerprint, key, entry)
            for fingerprint, keys in self._entries.items()
            for key, entries in keys.items()
            for entry in entries
        ]
