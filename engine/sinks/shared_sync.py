"""The sync of a directory in which many threads make files: one serves all who wait.

Laws
    - After ``sync`` the names of all files that were ``made`` before the call are durable.
    - Any thread may call.
"""

import threading

from engine.storage import Storage

__all__ = ["SharedSync"]


class SharedSync:
    """The names in one directory."""

    def __init__(self, storage: Storage, directory: str) -> None:
        self._storage = storage
        self._directory = directory
        self._counting = threading.Lock()
        self._made = 0
        self._syncing = threading.Lock()
        self._durable = 0

    def made(self) -> None:
        """A file has got its name."""
        with self._counting:
            self._made += 1

    def sync(self) -> None:
        """Make the names durable; nothing where another thread has done it meanwhile. Raises OSError."""
        needed = self._made
        with self._syncing:
            if self._durable < needed:
                covered = self._made
                self._storage.sync_directory(self._directory)
                self._durable = covered
