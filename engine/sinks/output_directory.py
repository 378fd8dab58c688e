"""A directory of finished data files, and beside it the staging directory that they come from.

    out/                              only whole, committed files of this pipeline (others' too with ``mode="append"``)
    .out.staging-<incarnation>/       what is being written, or waits for its commit

Laws
    - Readers list ``out/`` at any time: a file appears there by one rename, after its bytes are durable.
    - Staging lies beside the output, on the same filesystem: readers such as Polars and DuckDB take
      ``out/.staging/x.parquet`` for data.
    - ``check`` touches nothing. ``publish`` is idempotent and never replaces a file: what bears the name already is
      either the same file of the same commit, or an error.
    - A process that lost the state directory, and was on its way into a call then, can do that one call: leave an
      empty staged file, or take the empty staging directory away. Neither hinders us.
    - ``create``, ``sync_staging`` and ``forget`` may be called on any thread; the rest on one at a time.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from engine._core.crc32c import crc32c
from engine.errors import SinkError
from engine.progress import Token
from engine.sinks import ownership
from engine.sinks.failure import sink_failure
from engine.sinks.ownership import FileMark
from engine.sinks.shared_sync import SharedSync
from engine.sinks.staged_file import StagedFile
from engine.storage import File, Storage

__all__ = ["OutputDirectory"]

PUBLISHED_DIRECTORY_MODE = 0o755
PUBLISHED_FILE_MODE = 0o644
READ_BYTES = 1 << 20


class OutputDirectory:
    """Where a sink's files are staged and published. ``location`` is the path as the user gave it."""

    def __init__(
        self,
        location: str,
        *,
        storage: Storage,
        kind: str,
        extension: str,
        sink: str,
        writer: str,
        incarnation: str,
        shared: bool,
        read_mark: Callable[[str], FileMark | None],
    ) -> None:
        self.location = location
        self.extension = extension
        self.shared = shared
        self.found_files = 0
        self.published_files = 0
        self.published_bytes = 0
        self._storage = storage
        self._kind = kind
        self._sink = sink
        self._writer = writer
        self._incarnation = incarnation
        self._read_mark = read_mark
        self._target = storage.resolve(location)
        parent, name = os.path.split(self._target)
        self._staging = os.path.join(parent, f".{name}.staging-{ownership.short(incarnation)}")
        self._names_sync = SharedSync(storage, self._staging)
        self._mutex = threading.Lock()  # guards the next four
        self._staging_exists = False
        self._sequence = 0
        self._live: set[str] = set()
        self._finished: set[str] = set()
        self._directories: set[str] = set()

    # -- ownership --

    def check(self, last: Token) -> None:
        """Raise SinkError unless all that lies in the output is ours and not later than the commit ``last``."""
        with sink_failure(f"{self.location}: cannot be examined", sink=self._sink):
            if not self._storage.exists(self._target):
                return
            if not self._storage.is_directory(self._target):
                raise self._error(
                    f"{self.location} is a file; a directory is needed.\n"
                    "  Nothing was touched. Choose another directory, or move the file away."
                )
            if not self._storage.same_filesystem(os.path.dirname(self._target), self._target):
                raise self._error(
                    f"{self.location} is a mount point; files could not appear there whole, in one step.\n"
                    "  Nothing was touched. Choose a directory below it."
                )
            strangers, others, later = self._sort_files(last)
        if others and not self.shared:
            raise self._error(
                f"{self.location} holds {_files(others)} of another incarnation (first: {min(others)}).\n"
                "  Nothing was touched. It belongs to another incarnation; choose another directory, or bring back its "
                "state directory."
            )
        if strangers and not self.shared:
            raise self._error(
                f"{self.location} holds {_files(strangers)} that {self._writer} did not write "
                f"(first: {min(strangers)}).\n"
                f'  Nothing was touched. Choose another directory or sinks.{self._kind}(..., mode="append").'
            )
        if later:
            raise self._error(
                f"{self.location} holds {_files(later)} committed after epoch {last.epoch}, the last that the state "
                f"directory knows (first: {min(later)}).\n"
                "  Nothing was touched. The state directory seems to come from an older backup: bring back the newest, "
                "or begin anew with another state= and another directory."
            )

    def _sort_files(self, last: Token) -> tuple[list[str], list[str], list[str]]:
        strangers, others, later = [], [], []
        self.found_files = 0
        for relative in self._storage.tree(self._target):
            path = os.path.join(self._target, relative)
            mark = self._read_mark(path) if ownership.looks_like_ours(os.path.basename(relative)) else None
            if mark is None:
                strangers.append(relative)
            elif mark.incarnation != self._incarnation:
                others.append(relative)
            elif mark.epoch > last.epoch:
                later.append(relative)
            else:
                self.found_files += 1
        return strangers, others, later

    def prepare(self) -> None:
        """Make the output directory where it is missing. Raises SinkError."""
        with sink_failure(f"{self.location}: cannot be made", sink=self._sink):
            self._storage.make_directory(self._target, mode=PUBLISHED_DIRECTORY_MODE)

    # -- staging --

    def create(self, mark: FileMark) -> StagedFile:
        """A new staged file. Raises OSError."""
        with self._mutex:
            if not self._staging_exists:
                self._storage.make_directory(self._staging)
                self._staging_exists = True
            name = ownership.staged_name(mark, self._sequence, self.extension)
            file = self._create_staged(os.path.join(self._staging, name))
            self._sequence += 1
            self._live.add(name)
        self._names_sync.made()
        return StagedFile(name, file)

    def _create_staged(self, path: str) -> File:
        try:
            return self._storage.create(path, mode=PUBLISHED_FILE_MODE)
        except FileNotFoundError:
            if self._live:
                raise
            self._storage.make_directory(self._staging)
            return self._storage.create(path, mode=PUBLISHED_FILE_MODE)

    def sync_staging(self) -> None:
        """Make the names of all files created so far durable. Raises OSError."""
        self._names_sync.sync()

    def describe(self, mark: FileMark, files: Iterable[tuple[str, StagedFile]]) -> dict[str, Any]:
        """The handle of finished files: target path below the output, size, checksum, staged name."""
        entries: list[list[Any]] = [[target, staged.size, staged.checksum, staged.name] for target, staged in files]
        with self._mutex:
            self._finished.update(entry[3] for entry in entries)
        return {**asdict(mark), "files": entries}

    def forget(self, staged: StagedFile) -> None:
        """Remove a staged file that will never be committed. What cannot be removed now, recovery removes."""
        try:
            self._storage.unlink(staged.path)
        except OSError:
            return
        with self._mutex:
            self._live.discard(staged.name)

    def discard_after(self, epoch: int) -> None:
        """Remove the staged files of later epochs, and the staging directory with them. Raises SinkError."""
        with sink_failure(f"{self.location}: staged files cannot be removed", sink=self._sink):
            if not self._storage.exists(self._staging):
                return
            names = self._storage.list(self._staging)
            kept = [name for name in names if self._has_to_be_kept(name, epoch)]
            if kept:
                raise self._error(
                    f"{self._staging} holds {_files(kept)} that should have been published by epoch {epoch} "
                    f"(first: {kept[0]}).\n  Nothing was removed. Look at what they hold; then move them away."
                )
            for name in names:
                with suppress(FileNotFoundError):
                    self._storage.unlink(os.path.join(self._staging, name))
        with self._mutex:
            self._staging_exists = True
            self._live.clear()
        self._remove_idle_staging()

    def _has_to_be_kept(self, name: str, epoch: int) -> bool:
        """Whether a staged file may hold rows that were committed by ``epoch``, or is not ours."""
        staged = ownership.staged_epoch(name)
        if staged is None:
            return True
        return staged <= epoch and self._storage.size(os.path.join(self._staging, name)) > 0

    # -- publishing --

    def publish(self, handles: Sequence[Mapping[str, Any]]) -> None:
        """Make the files of ``handles`` visible, durably. Raises SinkError; then call it again, at any time."""
        touched: set[str] = set()
        try:
            with sink_failure(f"{self.location}: committed files cannot be published", sink=self._sink):
                for handle in handles:
                    mark = FileMark.from_handle(handle)
                    for target, size_bytes, checksum, name in handle["files"]:
                        touched.add(self._publish_file(mark, target, size_bytes, checksum, name))
                for directory in sorted(touched):
                    self._storage.sync_directory(directory)
        except SinkError:
            self._directories.clear()
            raise
        self._remove_idle_staging()

    def _publish_file(self, mark: FileMark, relative: str, size_bytes: int, checksum: int, name: str) -> str:
        target = os.path.join(self._target, relative)
        staged = os.path.join(self._staging, name)
        directory = os.path.dirname(target)
        if directory not in self._directories:
            self._storage.make_directory(directory, mode=PUBLISHED_DIRECTORY_MODE)
            self._directories.add(directory)
        if self._storage.exists(target):
            self._verify(target, size_bytes, checksum, mark)
            if self._storage.exists(staged):  # both came back from a backup: the published one is as good
                self._storage.unlink(staged)
        elif not self._storage.exists(staged):
            raise self._error(
                f"{target}: was committed in epoch {mark.epoch}, but is neither there nor in {self._staging}.\n"
                "  If something took it away, put it back for this run. Nothing else was changed.",
                partition=mark.partition,
            )
        else:
            if name not in self._finished:
                self._verify(staged, size_bytes, checksum, mark)
            self._storage.rename(staged, target)
            self.published_files += 1
            self.published_bytes += size_bytes
        with self._mutex:
            self._live.discard(name)
            self._finished.discard(name)
        return directory

    def _verify(self, path: str, size_bytes: int, checksum: int, mark: FileMark) -> None:
        """Raise SinkError unless the file is, byte for byte, the one that was committed under ``mark``."""
        found = self._storage.size(path)
        if self._read_mark(path) != mark:
            problem = "is not the file that was committed; it bears another mark"
        elif found != size_bytes:
            problem = f"has {found:,} bytes; {size_bytes:,} were committed"
        elif self._checksum(path, size_bytes) != checksum:
            problem = "is damaged; its checksum is not the one that was committed"
        else:
            return
        raise self._error(
            f"{path}: {problem}.\n"
            f"  Nothing was overwritten. Move it away, or bring back the file of epoch {mark.epoch}.",
            partition=mark.partition,
        )

    def _checksum(self, path: str, size_bytes: int) -> int:
        checksum = 0
        with self._storage.open(path) as file:
            for offset in range(0, size_bytes, READ_BYTES):
                checksum = crc32c(file.pread(min(READ_BYTES, size_bytes - offset), offset), checksum)
        return checksum

    def _remove_idle_staging(self) -> None:
        """Leave no empty staging directory behind while nothing is written; what hinders it is left to recovery."""
        with self._mutex:
            if not self._staging_exists or self._live:
                return
            try:
                self._storage.remove_directory(self._staging)
            except OSError:
                return
            self._staging_exists = False

    def _error(self, message: str, *, partition: int | None = None) -> SinkError:
        return SinkError(message, sink=self._sink, partition=partition)


def _files(names: Sequence[str]) -> str:
    return "1 file" if len(names) == 1 else f"{len(names):,} files"
