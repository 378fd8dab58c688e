"""Files of stages and sinks that may be changed only while the state directory is ours.

A process can be suspended, lose its lock to another one (somebody deletes LOCK), and be woken in the middle of its
work. The manifest's own checks come only with the next COMMIT; until then it would write over the keys of the other,
and stage rows of epochs that are over.

Laws
    - Before every change, of a file or of a name, the lock is checked: who lost it gets OSError and changes nothing.
    - What only reads is not checked: it harms nobody.
    - Who is suspended between a check and its call makes that one call, and no other. So a file that such a process
      leaves behind is empty: whoever clears up after it may tell it by that.
"""

from collections.abc import Callable, Iterator

import pyarrow as pa

from engine.storage import DIRECTORY_MODE, FILE_MODE, File, Held, Lock, Storage

__all__ = ["FencedStorage"]


class FencedStorage(Storage):
    """The calls of ``storage``, those that change anything only after ``check``, which raises OSError."""

    def __init__(self, storage: Storage, check: Callable[[], None]) -> None:
        self._storage = storage
        self._check = check

    def create(self, path: str, *, mode: int = FILE_MODE) -> File:
        """Make a new file, if we may, and only as long as we may."""
        self._check()
        return self._fenced(self._storage.create(path, mode=mode))

    def open(self, path: str, *, write: bool = False) -> File:
        """Open a file; it is changed only as long as we may."""
        return self._fenced(self._storage.open(path, write=write))

    def _fenced(self, file: File) -> File:
        file.before_change = self._check
        return file

    def make_directory(self, path: str, *, mode: int = DIRECTORY_MODE) -> None:
        """If we may."""
        self._check()
        self._storage.make_directory(path, mode=mode)

    def rename(self, source: str, target: str) -> None:
        """If we may."""
        self._check()
        self._storage.rename(source, target)

    def unlink(self, path: str) -> None:
        """If we may."""
        self._check()
        self._storage.unlink(path)

    def remove_directory(self, path: str) -> None:
        """If we may."""
        self._check()
        self._storage.remove_directory(path)

    def list(self, path: str) -> list[str]:
        """As the other storage."""
        return self._storage.list(path)

    def tree(self, path: str) -> Iterator[str]:
        """As the other storage."""
        return self._storage.tree(path)

    def exists(self, path: str) -> bool:
        """As the other storage."""
        return self._storage.exists(path)

    def is_directory(self, path: str) -> bool:
        """As the other storage."""
        return self._storage.is_directory(path)

    def resolve(self, path: str) -> str:
        """As the other storage."""
        return self._storage.resolve(path)

    def same_filesystem(self, path: str, other: str) -> bool:
        """As the other storage."""
        return self._storage.same_filesystem(path, other)

    def size(self, path: str) -> int:
        """As the other storage."""
        return self._storage.size(path)

    def sync_directory(self, path: str) -> None:
        """As the other storage."""
        self._storage.sync_directory(path)

    def open_input(self, path: str) -> pa.NativeFile:
        """As the other storage."""
        return self._storage.open_input(path)

    def pause(self, seconds: float) -> None:
        """As the other storage."""
        self._storage.pause(seconds)

    def lock(self, path: str) -> Lock:
        """If we may."""
        self._check()
        return self._storage.lock(path)

    def holder(self, path: str) -> tuple[Held, bool | None] | None:
        """As the other storage."""
        return self._storage.holder(path)
