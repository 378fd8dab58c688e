"""The only door to the filesystem.

Laws
    - Methods raise the operating system's own ``OSError``, with the path in it; callers say what it means.
    - Bytes are durable after ``File.sync``, a name after ``sync_directory`` of its directory, and neither before.
    - A failed ``sync`` is never retried: the kernel may have dropped the pages and report success the second time
      (LWN 752063). The file refuses every later ``sync``.
    - ``append`` writes at ``size``, which moves only when all bytes were taken: a failed append leaves ``size`` as it
      was, and the next one overwrites what the failed one left.
    - Writing to the disk begins while a file grows, by a hint that promises nothing: at ``sync`` little is left to wait
      for.
    - Locks are ``flock`` locks: ``fcntl`` locks vanish when any other descriptor of the process on the file is closed.
    - A forked child owns nothing: its copies of all descriptors are closed, and their use raises ``ForkedError``.
    - A ``File`` belongs to one thread at a time, but ``pread`` may be called on any, and one may ``sync`` what another
      appended while that goes on; a ``Storage`` has no state.
    - Tests inject faults by a subclass of ``Storage``: nothing else in the package writes, renames or removes a file.
    - Every system call on a descriptor is a method of its own (``_pwritev``, ``_fdatasync``, …): a simulated disk
      replaces those, and the loops and laws above them are the ones that users run.
"""

import ctypes
import errno
import fcntl
import glob
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, cast
from weakref import WeakSet

import pyarrow as pa

from engine._core.pread import pread_many
from engine.nature import wall_clock

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "File",
    "ForkedError",
    "Held",
    "Lock",
    "Storage",
    "file_size",
    "list_files",
    "open_input",
]

BUFFERS_PER_CALL = 1024
"""IOV_MAX of Linux and macOS."""

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

WRITEBACK_BYTES = 1 << 20
"""Bytes appended to a file between two hints that the system may begin to write them."""

_data_sync = getattr(os, "fdatasync", os.fsync)

_SYNC_FILE_RANGE_WRITE = 2


def _writeback_call() -> Callable[[int, int, int, int], int] | None:
    """Linux's ``sync_file_range``, which starts to write dirty pages and waits for none; None elsewhere."""
    if sys.platform != "linux":
        return None
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return cast(Callable[[int, int, int, int], int], call)


_begin_writeback = _writeback_call()


class ForkedError(OSError):
    """The file was opened by the parent process; open it again in this one."""


class Held(BlockingIOError):  # noqa: N818 - a word of the lock, not a fault
    """Another process, or another part of this one, holds the lock.

    ``pid``, ``host`` and ``since`` (UTC) describe the holder; each is None where the holder has not written it yet.
    """

    def __init__(self, path: str, *, pid: int | None, host: str | None, since: datetime | None) -> None:
        super().__init__(errno.EWOULDBLOCK, f"in use by pid {pid} on host {host} since {since}", path)
        self.pid = pid
        self.host = host
        self.since = since


class _Descriptor:
    """A file descriptor that is closed once, and in a forked child at once."""

    _descriptor = -1  # of one that was interrupted before it had any

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._forked = False
        _descriptors.add(self)

    @property
    def forked(self) -> bool:
        """Whether this is the copy of a forked child, which owns nothing."""
        return self._forked

    def close(self) -> None:
        """Close it. Harmless when repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        os.close(descriptor)

    def _fileno(self) -> int:
        if self._descriptor < 0:
            if self._forked:
                raise ForkedError(errno.EBADF, "was opened by the parent of this process", self.path)
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def _poison(self) -> None:
        self._forked = True
        self.close()

    def __del__(self) -> None:
        self.close()


_descriptors: WeakSet[_Descriptor] = WeakSet()


def _poison_descriptors() -> None:
    for descriptor in list(_descriptors):
        descriptor._poison()


os.register_at_fork(after_in_child=_poison_descriptors)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Calls on descriptors raise errors without a path: add it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


class File(_Descriptor):
    """An open file that is appended to, or read at offsets; also the binary stream that pyarrow's writers ask for."""

    before_change: Callable[[], None] = staticmethod(lambda: None)
    """Called before bytes are written or cut off; what it raises prevents that."""

    def __init__(self, path: str, descriptor: int, *, writable: bool) -> None:
        super().__init__(path, descriptor)
        self._writable = writable
        self._sync_failed = False
        with _naming(path):
            self._size = self._writeback_from = self._fstat_size()

    @property
    def size(self) -> int:
        """Bytes in the file, as far as this object wrote or found them."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether it was closed, here or by a fork."""
        return self._descriptor < 0

    def append(self, *buffers: "Buffer") -> int:
        """Write the buffers whole behind the end; give the new size. Raises OSError and leaves ``size`` as it was."""
        views = [view.cast("B") for view in (memoryview(buffer) for buffer in buffers) if view.nbytes]
        position = self._size
        self.before_change()
        with _naming(self.path):
            while views:
                written = self._pwritev(views[:BUFFERS_PER_CALL], position)
                if written <= 0:
                    raise OSError(errno.EIO, "the filesystem took no bytes")
                position += written
                _consume(views, written)
        self._size = position
        if position - self._writeback_from >= WRITEBACK_BYTES:
            self._hint_writeback()
        return position

    def _hint_writeback(self) -> None:
        """Let the disk work while more is being made. Only a hint: an error will come back from ``sync``."""
        self._sync_file_range(self._writeback_from, self._size - self._writeback_from)
        self._writeback_from = self._size

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly ``size`` bytes from ``offset``. Raises EOFError where the file ends before."""
        pieces: list[bytes] = []
        with _naming(self.path):
            while size > 0:
                piece = self._pread(size, offset)
                if not piece:
                    raise EOFError(f"{self.path}: ends at byte {offset}, {size} more were expected")
                pieces.append(piece)
                size -= len(piece)
                offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pread_into(self, target: "Buffer", offset: int) -> None:
        """Fill ``target`` from ``offset`` on. Raises EOFError where the file ends before."""
        view = memoryview(target).cast("B")
        with _naming(self.path):
            while view.nbytes:
                size = self._preadv(view, offset)
                if size <= 0:
                    raise EOFError(f"{self.path}: ends at byte {offset}, {view.nbytes} more were expected")
                view, offset = view[size:], offset + size

    def pread_many(self, offsets: "Buffer", sizes: "Buffer") -> bytes:
        """Pieces at several offsets (int64), joined; EOFError as in ``pread``. A device reads them side by side."""
        with _naming(self.path):
            return self._pread_many(offsets, sizes)

    def truncate(self, size: int) -> None:
        """Cut the file, or fill it with zeros, to ``size`` bytes."""
        self.before_change()
        with _naming(self.path):
            self._ftruncate(size)
        self._size = size
        self._writeback_from = min(self._writeback_from, size)

    def sync(self) -> None:
        """Make the bytes and the length durable. After a failure every later call raises."""
        self._fileno()
        if self._sync_failed:
            raise OSError(errno.EIO, "an earlier sync failed; what it left on the disk is unknown", self.path)
        self._sync_failed = True
        with _naming(self.path):
            self._fdatasync()
        self._sync_failed = False

    def write(self, data: "Buffer") -> int:
        """``append``, as a binary stream has it: gives the number of bytes taken, always all."""
        before = self._size
        return self.append(data) - before

    def tell(self) -> int:
        """The position of the next write: ``size``."""
        return self._size

    def flush(self) -> None:
        """Do nothing: there is no buffer. For durability call ``sync``."""

    def readable(self) -> bool:
        """Not as a stream: use ``pread``."""
        return False

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writable

    def seekable(self) -> bool:
        """Never."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the system calls, and nothing else --

    def _fstat_size(self) -> int:
        return os.fstat(self._fileno()).st_size

    def _pwritev(self, buffers: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(self._fileno(), buffers, offset)

    def _pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._fileno(), size, offset)

    def _preadv(self, target: memoryview, offset: int) -> int:
        return os.preadv(self._fileno(), [target], offset)

    def _pread_many(self, offsets: "Buffer", sizes: "Buffer") -> bytes:
        return pread_many(self._fileno(), offsets, sizes)

    def _ftruncate(self, size: int) -> None:
        os.ftruncate(self._fileno(), size)

    def _fdatasync(self) -> None:
        _data_sync(self._fileno())

    def _sync_file_range(self, offset: int, size: int) -> None:
        if _begin_writeback is not None:
            _begin_writeback(self._fileno(), offset, size, _SYNC_FILE_RANGE_WRITE)


def _consume(views: list[memoryview], written: int) -> None:
    """Drop the first ``written`` bytes of ``views``."""
    done = 0
    while done < len(views) and written >= views[done].nbytes:
        written -= views[done].nbytes
        done += 1
    del views[:done]
    if written:
        views[0] = views[0][written:]


class Lock(_Descriptor):
    """The exclusive lock on a LOCK file, held until ``release`` or the end of the process. The file itself stays."""

    def __init__(self, path: str, descriptor: int) -> None:
        super().__init__(path, descriptor)
        self._pid = os.getpid()

    def check(self) -> None:
        """Raise ForkedError in another process, and OSError where the LOCK file was deleted or replaced meanwhile."""
        self._fileno()
        if os.getpid() != self._pid:
            raise ForkedError(errno.EBADF, f"is held by pid {self._pid}, the parent of this process", self.path)
        if not self._is_named():
            raise OSError(errno.ESTALE, "was deleted or replaced while it was held", self.path)

    def release(self) -> None:
        """Let others take it. Harmless when repeated."""
        self.close()

    def _is_named(self) -> bool:
        return _same_file(self._fileno(), self.path)


def _same_file(descriptor: int, path: str) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


class Storage:
    """Files and directories by path. Subclass it to inject faults or to count calls."""

    def create(self, path: str, *, mode: int = FILE_MODE) -> File:
        """Make a new, empty file and open it for reading and writing. Raises FileExistsError."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        return File(path, os.open(path, flags, mode), writable=True)

    def open(self, path: str, *, write: bool = False) -> File:
        """Open a file that exists. With ``write``, a symbolic link in its place is refused."""
        flags = os.O_RDWR | os.O_NOFOLLOW if write else os.O_RDONLY
        return File(path, os.open(path, flags | os.O_CLOEXEC), writable=write)

    def make_directory(self, path: str, *, mode: int = DIRECTORY_MODE) -> None:
        """Make a directory and its missing parents, all of them durable; nothing where it exists.

        Raises FileExistsError where a file has the name.
        """
        parent = os.path.dirname(path.rstrip("/")) or os.curdir
        if self.is_directory(path):
            # A killed process may have made it and not come to the sync. Of a chain that can only be the deepest.
            self._sync_foreign_directory(parent)
            return
        self.make_directory(parent, mode=mode)
        try:
            self._mkdir(path, mode)
        except FileExistsError:
            if not self.is_directory(path):
                raise
        self.sync_directory(parent)

    def _mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name on the same filesystem, atomically; what had that name before is gone."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file."""
        os.unlink(path)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(path))

    def tree(self, path: str) -> Iterator[str]:
        """Relative paths of all below a directory that is no directory itself; in no order, links not followed."""
        pending = [""]
        while pending:
            below = pending.pop()
            with os.scandir(os.path.join(path, below)) as entries:
                for entry in entries:
                    relative = os.path.join(below, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(relative)
                    else:
                        yield relative

    def exists(self, path: str) -> bool:
        """Whether the name is taken, be it by a link that leads nowhere."""
        return os.path.lexists(path)

    def is_directory(self, path: str) -> bool:
        """Whether it is a directory, or a link to one."""
        return os.path.isdir(path)

    def resolve(self, path: str) -> str:
        """The absolute path without symbolic links; it need not exist."""
        return os.path.realpath(path)

    def same_filesystem(self, path: str, other: str) -> bool:
        """Whether files can be renamed from one directory to the other."""
        return os.stat(path).st_dev == os.stat(other).st_dev

    def size(self, path: str) -> int:
        """Bytes in a file."""
        return os.stat(path).st_size

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _naming(path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sync_foreign_directory(self, path: str) -> None:
        # We may stand below a directory that we may pass through but not read: then it is not we who made the entry.
        try:
            self.sync_directory(path)
        except PermissionError:
            return

    def open_input(self, path: str) -> pa.NativeFile:
        """Open one of our files for Arrow's readers. Raises OSError."""
        return open_input(path)

    def pause(self, seconds: float) -> None:
        """Wait on this thread for what another process may do."""
        time.sleep(seconds)

    def lock(self, path: str) -> Lock:
        """Take the lock on the file ``path``, made where missing. Raises Held at once where somebody has it."""
        while True:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
            lock = Lock(path, descriptor)
            with _naming(path):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held = Held(path, **_read_holder(descriptor))
                    lock.close()
                    raise held from None
                except OSError:
                    lock.close()
                    raise
                if _same_file(descriptor, path):
                    try:
                        _write_holder(descriptor)
                    except OSError:
                        lock.close()
                        raise
                    return lock
            lock.close()  # it was deleted between open and flock: what we hold locks nothing

    def holder(self, path: str) -> tuple[Held, bool | None] | None:
        """Who took the lock on the file ``path`` last, and whether it still has it (None: it is of another host).

        Told from what the holder wrote; the lock is not touched. None where nobody wrote anything yet. Raises OSError.
        """
        try:
            with self.open(path) as file:
                holder = _parse_holder(file.pread(file.size, 0))
        except FileNotFoundError:
            return None
        except EOFError:  # another holder is just writing itself into it
            holder = _parse_holder(b"")
        if holder["pid"] is None:
            return None
        here = holder["host"] == socket.gethostname()
        return Held(path, **holder), _has_open(holder["pid"], path) if here else None


def _has_open(pid: int, path: str) -> bool:
    """Whether a process of this host runs and, as far as the system tells, has the file open."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return True  # a system that does not tell
    wanted = os.stat(path)
    for descriptor in descriptors:
        try:
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), wanted):
                return True
        except OSError:  # it was closed meanwhile
            continue
    return False


class _Holder(TypedDict):
    pid: int | None
    host: str | None
    since: datetime | None


def _write_holder(descriptor: int) -> None:
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": wall_clock().isoformat()}
    data = json.dumps(holder).encode()
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))


def _read_holder(descriptor: int) -> _Holder:
    return _parse_holder(os.pread(descriptor, 4096, 0))


def _parse_holder(data: bytes) -> _Holder:
    try:
        holder = json.loads(data)
        return _Holder(
            pid=int(holder["pid"]), host=str(holder["host"]), since=datetime.fromisoformat(str(holder["since"]))
        )
    except (ValueError, KeyError, TypeError):  # half written: the holder is only just beginning
        return _Holder(pid=None, host=None, since=None)


def open_input(path: str) -> pa.NativeFile:
    """Open a regular file for reading: seekable, unbuffered, without the GIL. Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        # To open a named pipe would wait for its writer, perhaps for ever.
        raise OSError(errno.EINVAL, "not a regular file", path)
    return pa.OSFile(path, "r")


def file_size(path: str) -> int:
    """Bytes in a file, links followed."""
    return os.stat(path).st_size


def list_files(path: str) -> list[str]:
    """Sorted paths of the files that ``path`` stands for: a file, all below a directory, or what a pattern matches.

    Below a directory names that begin with "." or "_" are left out, as Arrow, Polars and Hive do; symbolic links are
    followed, each directory once. A name that exists is never taken for a pattern. Nothing there: an empty list.
    Raises OSError where a directory cannot be read.
    """
    found: dict[tuple[str, str], str] = {}
    visited: set[tuple[int, int]] = set()
    starts = [path] if os.path.lexists(path) else glob.glob(path, recursive=True)
    for start in sorted(starts, key=lambda name: (len(name), name)):  # a link that leads back gives the longer path
        for file in _files_below(start, visited) if os.path.isdir(start) else [start]:
            directory, name = os.path.split(file)
            found.setdefault((os.path.realpath(directory), name), file)
    return sorted(found.values())


def _files_below(directory: str, visited: set[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(directory)
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    with os.scandir(directory) as entries:
        shown = sorted((entry for entry in entries if not entry.name.startswith((".", "_"))), key=lambda e: e.name)
    for entry in shown:
        if entry.is_dir():
            yield from _files_below(entry.path, visited)
        else:
            yield entry.path
